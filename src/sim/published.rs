//! The scenarios that come with the program.

/// A scenario by name.
#[derive(Clone, Copy, Debug)]
pub struct Published {
    /// Its file's name, without `.toml`.
    pub name: &'static str,
    /// The file.
    pub text: &'static str,
}

macro_rules! published {
    ($($name:literal),+ $(,)?) => {
        [$(Published {
            name: $name,
            text: include_str!(concat!("../../simulations/scenarios/", $name, ".toml")),
        }),+]
    };
}

/// All of `simulations/scenarios/`, by name.
pub const PUBLISHED: &[Published] = &published![
    "dadi",
    "faasnet",
    "flash-crowd-10k",
    "in-order-10k",
    "kraken",
    "rollout-32",
    "rollout-32-cells",
    "rollout-32-deaths",
    "rollout-32-in-order",
    "rollout-32-liars",
    "rollout-32-stalls",
];

impl Published {
    /// What it is about: its first line.
    pub fn about(&self) -> &'static str {
        self.text.lines().next().unwrap_or_default().trim_start_matches('#').trim()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sim::Plan;

    #[test]
    fn all_of_the_folder_are_published_well_formed_and_say_what_they_are_about() {
        let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/simulations/scenarios");
        let mut names: Vec<String> = std::fs::read_dir(folder)
            .unwrap()
            .map(|entry| entry.unwrap().file_name().to_str().unwrap().trim_end_matches(".toml").to_owned())
            .collect();
        names.sort();
        assert_eq!(PUBLISHED.iter().map(|one| one.name).collect::<Vec<_>>(), names);
        let mut lines = std::collections::BTreeSet::new();
        for one in PUBLISHED {
            Plan::parse(one.text, None, None).unwrap_or_else(|error| panic!("{}: {error}", one.name));
            assert!((20..110).contains(&one.about().len()), "{}: {}", one.name, one.about());
            assert!(lines.insert(one.about()), "{} says no more than another", one.name);
        }
    }
}
