//! Which links there are, how fast each is, and which of them a transfer passes.
//!
//! Ends are the nodes and, after the last of them, the stratum and the servers that a strategy needs. Links have numbers: first
//! the uplinks of all ends, then their downlinks, then those that nodes share: out of the racks, out of the cells, out of the
//! regions, into the regions, into the cells, into the racks, as far as a scenario has them.

use super::keys::{NodeClass, Whose};
use crate::model::{Generator, Rng};
use crate::sim::scenario::Scenario;

/// Sets the draw of classes apart from all other randomness.
const CLASSES: u64 = 0x0063_6c61_7373_6573;
/// The part of a link that is kept free for what is no transfer, at most.
const KEPT_FREE_MOST: f64 = 0.9;
/// Most shared links on the way of a transfer: out of and into a rack, a cell and a region.
pub(super) const SHARED_MAX: usize = 6;
/// The same with both ends' own links.
pub(super) const PATH_MAX: usize = SHARED_MAX + 2;

/// What groups nodes have links together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::sim) enum Tier {
    Rack,
    Cell,
    Region,
}

impl Tier {
    const fn text(self) -> &'static str {
        match self {
            Self::Rack => "rack",
            Self::Cell => "cell",
            Self::Region => "region",
        }
    }
}

/// The order in which a transfer passes shared links.
const WAY: [(Tier, Direction); SHARED_MAX] = [
    (Tier::Rack, Direction::Up),
    (Tier::Cell, Direction::Up),
    (Tier::Region, Direction::Up),
    (Tier::Region, Direction::Down),
    (Tier::Cell, Direction::Down),
    (Tier::Rack, Direction::Down),
];

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Direction {
    Up,
    Down,
}

/// The links that a transfer passes, in their order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::sim) struct Path {
    links: [u32; PATH_MAX],
    count: u8,
}

impl Path {
    /// From an end's uplink to another's downlink, with nothing between; `ends` is the number of all ends.
    pub(super) fn plain(from: u32, to: u32, ends: u32) -> Self {
        let mut path = Self { links: [0; PATH_MAX], count: 0 };
        path.push(from);
        path.push(ends + to);
        path
    }

    fn push(&mut self, link: u32) {
        self.links[usize::from(self.count)] = link;
        self.count += 1;
    }

    /// All of them.
    pub(super) fn links(&self) -> &[u32] {
        &self.links[..usize::from(self.count)]
    }

    /// Those between the ends' own ones.
    pub(super) fn shared(&self) -> &[u32] {
        &self.links[1..usize::from(self.count) - 1]
    }
}

/// The links of one tier in one direction, one for each group.
#[derive(Clone, Copy, Debug)]
struct Shared {
    tier: Tier,
    direction: Direction,
    first: u32,
}

/// Whose links change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Place {
    Stratum,
    /// In ascending order.
    Nodes(Vec<u32>),
    Group(Tier, u32),
}

/// Machines that a strategy needs beside the nodes. All have the same links.
#[derive(Clone, Debug, Default)]
pub(in crate::sim) struct Servers {
    /// What a report calls one of them, and several.
    pub(in crate::sim) name: [&'static str; 2],
    /// By server: the cell in which it is. It is in none of the cell's racks.
    pub(in crate::sim) cells: Vec<u32>,
    /// Its uplink, and its downlink.
    pub(in crate::sim) mbit_s: f64,
}

/// All links of a scenario.
#[derive(Clone, Debug)]
pub(in crate::sim) struct Links {
    nodes: u32,
    servers: Servers,
    /// By link, in bytes a step.
    rates: Vec<f64>,
    shared: Vec<Shared>,
    /// By node, when there are shared links: its rack.
    racks: Vec<u32>,
    racks_per_cell: u32,
    cells_per_region: u32,
    /// By link, in bytes a step: what passes it all the time beside transfers. Empty if that is nothing.
    background: Vec<f64>,
}

/// By node: its class, and as many as there are classes for none. Empty without classes.
pub(in crate::sim) fn classes(nodes: u32, class: &[NodeClass], seed: u64) -> Vec<u8> {
    if class.is_empty() {
        return Vec::new();
    }
    let mut classes = Vec::with_capacity(nodes as usize);
    for (number, class) in (0_u8..).zip(class) {
        classes.extend(std::iter::repeat_n(number, class.count(nodes) as usize));
    }
    classes.resize(nodes as usize, u8::try_from(class.len()).unwrap_or(u8::MAX));
    let mut rng = Generator::stream(seed, CLASSES);
    for place in 1..classes.len() {
        classes.swap(place, rng.below(place + 1));
    }
    classes
}

/// By node: the rates of its links in Mbit/s, up and down; `other` are those of a node of no class. Real nodes in the lab have
/// those of the simulated ones with the same seed.
pub fn class_rates(nodes: u32, other: [f64; 2], class: &[NodeClass], seed: u64) -> Vec<[f64; 2]> {
    let classes = classes(nodes, class, seed);
    if classes.is_empty() {
        return vec![other; nodes as usize];
    }
    let rates =
        |own: &u8| class.get(usize::from(*own)).map_or(other, |class| [class.up_mbit_s, class.down_mbit_s]);
    classes.iter().map(rates).collect()
}

/// By node: the rates of its links in Mbit/s, up and down.
pub(in crate::sim) fn node_rates(scenario: &Scenario, seed: u64) -> Vec<[f64; 2]> {
    let fleet = &scenario.fleet;
    class_rates(fleet.nodes, [fleet.up_mbit_s, fleet.down_mbit_s], &fleet.class, seed)
}

impl Links {
    /// The links of a scenario, with steps of `step_ns`.
    pub(in crate::sim) fn new(scenario: &Scenario, seed: u64, step_ns: u64) -> Self {
        Self::with_servers(scenario, seed, step_ns, Servers::default())
    }

    /// The same with a strategy's servers.
    pub(in crate::sim) fn with_servers(
        scenario: &Scenario,
        seed: u64,
        step_ns: u64,
        servers: Servers,
    ) -> Self {
        let per_step = |mbit_s: f64| mbit_s * 1e6 / 8.0 * step_ns as f64 / 1e9;
        let own = node_rates(scenario, seed);
        let of_servers = std::iter::repeat_n(per_step(servers.mbit_s), servers.cells.len());
        let mut rates: Vec<f64> = own.iter().map(|rates| per_step(rates[0])).collect();
        rates.push(per_step(scenario.stratum.up_mbit_s));
        rates.extend(of_servers.clone());
        rates.extend(own.iter().map(|rates| per_step(rates[1])));
        rates.push(0.0); // Nobody sends to the stratum.
        rates.extend(of_servers);
        let mut links = Self {
            nodes: scenario.fleet.nodes,
            servers,
            rates,
            shared: Vec::new(),
            racks: Vec::new(),
            racks_per_cell: scenario.fleet.racks_per_cell,
            cells_per_region: scenario.fleet.cells_per_region,
            background: Vec::new(),
        };
        for (tier, direction) in WAY {
            let [up, down] = scenario.network.links.of(tier);
            let given = if direction == Direction::Up { up } else { down };
            let changes = || scenario.network.change.iter().any(|change| change.of.tier() == Some(tier));
            let groups = scenario.groups(tier);
            if given.is_none() && !changes() {
                continue;
            }
            if links.racks.is_empty() {
                links.racks = racks(scenario.fleet.nodes, scenario.groups(Tier::Rack));
            }
            let first = u32::try_from(links.rates.len()).unwrap_or(u32::MAX);
            links.shared.push(Shared { tier, direction, first });
            match given {
                Some(mbit_s) => links.rates.extend(std::iter::repeat_n(per_step(mbit_s), groups as usize)),
                None => links.rates.extend(links.ample(tier, direction, groups)),
            }
        }
        let network = &scenario.network;
        let out = if scenario.cells() > 1 { network.gossip_out_bytes_per_s } else { 0 };
        let gossip = [network.gossip_bytes_per_s + out, out];
        links.keep_free(gossip.map(|bytes_per_s| per_step(bytes_per_s as f64 * 8.0 / 1e6)));
        links
    }

    /// Keeps some bytes a step of each node's links free, and for each member of a cell some of the cell's.
    fn keep_free(&mut self, [own, of_cell]: [f64; 2]) {
        if own == 0.0 && of_cell == 0.0 {
            return;
        }
        self.background = vec![0.0; self.rates.len()];
        for node in 0..self.nodes {
            for link in [node, self.ends() + node] {
                self.background[link as usize] = own;
            }
            let Some(cell) = self.group(Tier::Cell, node) else { continue };
            for shared in self.shared.iter().filter(|shared| shared.tier == Tier::Cell) {
                self.background[(shared.first + cell) as usize] += of_cell;
            }
        }
        for (rate, background) in self.rates.iter_mut().zip(&mut self.background) {
            *background = background.min(*rate * KEPT_FREE_MOST);
            *rate -= *background;
        }
    }

    /// What passes some links all the time beside transfers, in bytes a step.
    pub(super) fn background(&self, links: std::ops::Range<u32>) -> f64 {
        self.background.get(links.start as usize..links.end as usize).map_or(0.0, |of| of.iter().sum())
    }

    /// As much as the nodes of each group can take together, which limits nothing.
    fn ample(&self, tier: Tier, direction: Direction, groups: u32) -> Vec<f64> {
        let mut sums = vec![0.0; groups as usize];
        for node in 0..self.nodes {
            let own = if direction == Direction::Up { node } else { self.ends() + node };
            if let Some(group) = self.group(tier, node) {
                sums[group as usize] += self.rates[own as usize];
            }
        }
        sums
    }

    /// The number of ends: the nodes, the stratum and the servers.
    pub(in crate::sim) fn ends(&self) -> u32 {
        self.nodes + 1 + u32::try_from(self.servers.cells.len()).unwrap_or(0)
    }

    /// The end that is the stratum.
    pub(in crate::sim) fn stratum(&self) -> u32 {
        self.nodes
    }

    /// By link, in bytes a step.
    pub(in crate::sim) fn rates(&self) -> &[f64] {
        &self.rates
    }

    /// The number of links.
    pub(in crate::sim) fn count(&self) -> u32 {
        u32::try_from(self.rates.len()).unwrap_or(u32::MAX)
    }

    /// The uplinks of all servers, then their downlinks.
    pub(super) fn of_servers(&self) -> impl Iterator<Item = u32> + use<> {
        let (first, ends) = (self.nodes + 1, self.ends());
        (first..ends).chain(ends + first..2 * ends)
    }

    /// The first of those that belong to racks, cells and regions.
    pub(in crate::sim) fn first_shared(&self) -> u32 {
        2 * self.ends()
    }

    /// Most shared links on the way of a transfer.
    pub(super) fn most_shared(&self) -> usize {
        self.shared.len()
    }

    /// The group of an end; the stratum is in none.
    fn group(&self, tier: Tier, end: u32) -> Option<u32> {
        if let Some(server) = end.checked_sub(self.nodes + 1) {
            let cell = *self.servers.cells.get(server as usize)?;
            return match tier {
                Tier::Rack => None,
                Tier::Cell => Some(cell),
                Tier::Region => Some(cell / self.cells_per_region),
            };
        }
        let rack = *self.racks.get(end as usize)?;
        Some(match tier {
            Tier::Rack => rack,
            Tier::Cell => rack / self.racks_per_cell,
            Tier::Region => rack / self.racks_per_cell / self.cells_per_region,
        })
    }

    /// What a transfer passes.
    pub(in crate::sim) fn path(&self, from: u32, to: u32) -> Path {
        if self.shared.is_empty() {
            return Path::plain(from, to, self.ends());
        }
        let mut path = Path { links: [0; PATH_MAX], count: 0 };
        path.push(from);
        for shared in &self.shared {
            let (leaves, enters) = (self.group(shared.tier, from), self.group(shared.tier, to));
            let passes = if shared.direction == Direction::Up { leaves } else { enters };
            if let Some(group) = passes.filter(|_| leaves != enters) {
                path.push(shared.first + group);
            }
        }
        path.push(self.ends() + to);
        path
    }

    /// The links of a place.
    pub(super) fn of(&self, place: &Place) -> Vec<u32> {
        match place {
            Place::Stratum => vec![self.stratum()],
            Place::Nodes(nodes) => nodes.iter().flat_map(|node| [*node, self.ends() + node]).collect(),
            Place::Group(tier, number) => {
                let of_tier = self.shared.iter().filter(|shared| shared.tier == *tier);
                of_tier.map(|shared| shared.first + number).collect()
            }
        }
    }

    /// Whether what one end sends to another passes the links of a place.
    pub(super) fn passes(&self, place: &Place, from: u32, to: u32) -> bool {
        match place {
            Place::Stratum => from == self.stratum() || to == self.stratum(),
            Place::Nodes(nodes) => [from, to].iter().any(|end| nodes.binary_search(end).is_ok()),
            Place::Group(tier, number) => {
                let is_in = |end| self.group(*tier, end) == Some(*number);
                is_in(from) != is_in(to)
            }
        }
    }

    /// What a report calls a link.
    pub(super) fn name(&self, link: u32) -> String {
        let ends = self.ends();
        if link == self.stratum() {
            return "uplink of the stratum".to_owned();
        }
        if link < 2 * ends {
            let direction = if link < ends { "uplink" } else { "downlink" };
            let end = link % ends;
            return match end.checked_sub(self.nodes + 1) {
                Some(server) => format!("{direction} of {} {server}", self.servers.name[0]),
                None => format!("{direction} of node {end}"),
            };
        }
        let found = self.shared.iter().rev().find(|shared| shared.first <= link);
        found.map_or_else(String::new, |shared| {
            let direction = if shared.direction == Direction::Up { "uplink" } else { "downlink" };
            format!("{direction} of {} {}", shared.tier.text(), link - shared.first)
        })
    }

    /// Links of the same kind, by their numbers, and what a report calls the kind.
    pub(super) fn kinds(&self) -> Vec<(String, std::ops::Range<u32>)> {
        let ends = self.ends();
        let mut kinds = vec![
            ("uplink of the stratum".to_owned(), self.nodes..self.nodes + 1),
            ("uplinks of nodes".to_owned(), 0..self.nodes),
            ("downlinks of nodes".to_owned(), ends..ends + self.nodes),
        ];
        if !self.servers.cells.is_empty() {
            let (name, first) = (self.servers.name[1], self.nodes + 1);
            kinds.push((format!("uplinks of {name}"), first..ends));
            kinds.push((format!("downlinks of {name}"), ends + first..2 * ends));
        }
        let all = self.count();
        for (place, shared) in self.shared.iter().enumerate() {
            let end = self.shared.get(place + 1).map_or(all, |next| next.first);
            let direction = if shared.direction == Direction::Up { "uplinks" } else { "downlinks" };
            kinds.push((format!("{direction} of {}s", shared.tier.text()), shared.first..end));
        }
        kinds
    }
}

impl Scenario {
    /// How many racks, cells or regions there are.
    pub(in crate::sim) fn groups(&self, tier: Tier) -> u32 {
        match tier {
            Tier::Rack => self.cells().saturating_mul(self.fleet.racks_per_cell),
            Tier::Cell => self.cells(),
            Tier::Region => self.fleet.regions,
        }
    }
}

/// By node: its rack. Racks are divided as cells are, and none lies in two cells.
fn racks(nodes: u32, racks: u32) -> Vec<u32> {
    let first = |rack: u32| u64::from(rack) * u64::from(nodes) / u64::from(racks);
    let mut all = Vec::with_capacity(nodes as usize);
    for rack in 0..racks {
        let size = usize::try_from(first(rack + 1) - first(rack)).unwrap_or(0);
        all.extend(std::iter::repeat_n(rack, size));
    }
    all
}

impl Place {
    /// The place that a change is about, if the nodes are those.
    pub(super) fn new(whose: Whose, number: Option<u32>, nodes: Vec<u32>) -> Self {
        match whose.tier() {
            Some(tier) => Self::Group(tier, number.unwrap_or(0)),
            None if whose == Whose::Nodes => Self::Nodes(nodes),
            None => Self::Stratum,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sim::network::testing::scenario;

    fn names(links: &Links, from: u32, to: u32) -> Vec<String> {
        links.path(from, to).links().iter().map(|link| links.name(*link)).collect()
    }

    const ALL: &str = "rack_up_mbit_s = 1\nrack_down_mbit_s = 2\ncell_up_mbit_s = 3\ncell_down_mbit_s = 4\n\
                       region_up_mbit_s = 5\nregion_down_mbit_s = 6\n";

    #[test]
    fn a_transfer_passes_the_links_of_what_it_leaves_and_enters_and_no_others() {
        // Two regions with two cells each, two racks a cell, two nodes a rack.
        let links = Links::new(&scenario(16, [2, 2, 2], "", ALL), 1, 8_000);
        assert_eq!(names(&links, 0, 1), ["uplink of node 0", "downlink of node 1"]);
        let of_racks = ["uplink of node 0", "uplink of rack 0", "downlink of rack 1", "downlink of node 2"];
        assert_eq!(names(&links, 0, 2), of_racks);
        assert_eq!(
            names(&links, 15, 6),
            [
                "uplink of node 15",
                "uplink of rack 7",
                "uplink of cell 3",
                "uplink of region 1",
                "downlink of region 0",
                "downlink of cell 1",
                "downlink of rack 3",
                "downlink of node 6"
            ]
        );
        assert_eq!(
            names(&links, links.stratum(), 5),
            [
                "uplink of the stratum",
                "downlink of region 0",
                "downlink of cell 1",
                "downlink of rack 2",
                "downlink of node 5"
            ]
        );
        let rates: Vec<f64> =
            links.path(15, 6).shared().iter().map(|link| links.rates[*link as usize]).collect();
        assert_eq!(rates, [1.0, 3.0, 5.0, 6.0, 4.0, 2.0], "Mbit/s are bytes in 8 µs");
    }

    #[test]
    fn a_server_is_in_its_cell_and_in_no_rack_and_has_links_of_its_own() {
        let servers = Servers { name: ["proxy", "proxies"], cells: vec![1, 3], mbit_s: 8.0 };
        let links = Links::with_servers(&scenario(16, [2, 2, 2], "", ALL), 1, 8_000, servers);
        let (proxy, other) = (links.stratum() + 1, links.stratum() + 2);
        assert_eq!(
            names(&links, proxy, 4),
            ["uplink of proxy 0", "downlink of rack 2", "downlink of node 4"]
        );
        assert_eq!(
            names(&links, links.stratum(), other),
            ["uplink of the stratum", "downlink of region 1", "downlink of cell 3", "downlink of proxy 1"]
        );
        assert_eq!(names(&links, 5, 4), ["uplink of node 5", "downlink of node 4"]);
        let kinds = links.kinds();
        assert_eq!(kinds[0], ("uplink of the stratum".to_owned(), 16..17));
        assert_eq!(kinds[3], ("uplinks of proxies".to_owned(), 17..19));
        assert_eq!(kinds[4], ("downlinks of proxies".to_owned(), 36..38));
        assert_eq!(links.rates[36..38], [8.0, 8.0]);
        assert!(
            links.passes(&Place::Group(Tier::Rack, 2), proxy, 4)
                && !links.passes(&Place::Group(Tier::Cell, 1), proxy, 4)
        );
    }

    #[test]
    fn what_a_scenario_has_not_is_on_no_way() {
        let links = Links::new(&scenario(16, [2, 2, 2], "", ""), 1, 1_000);
        assert_eq!((links.most_shared(), links.path(0, 15).shared().len()), (0, 0));
        let links = Links::new(&scenario(16, [2, 2, 2], "", "cell_down_mbit_s = 4\n"), 1, 1_000);
        assert_eq!(links.path(0, 3).shared().len(), 0, "the same cell");
        assert_eq!(names(&links, 0, 4)[1..2], ["downlink of cell 1"]);
    }

    #[test]
    fn a_link_that_only_changes_limits_nothing_before() {
        let change = "[[network.change]]\nat_ms = 1\nof = 'region'\nnumber = 1\nfactor = 0\n";
        let links = Links::new(&scenario(10, [2, 1, 1], change, ""), 1, 8_000);
        let shared: Vec<f64> =
            links.path(0, 9).shared().iter().map(|link| links.rates[*link as usize]).collect();
        assert_eq!(shared, [5_000.0, 5_000.0], "as much as five nodes with 1 000 each");
        assert_eq!(links.of(&Place::Group(Tier::Region, 1)).len(), 2);
    }

    #[test]
    fn classes_have_as_many_nodes_as_they_say_and_the_seed_draws_which() {
        let text = "[[fleet.class]]\nname = 'slow'\nshare = 0.25\nup_mbit_s = 10\ndown_mbit_s = 20\n\
                    [[fleet.class]]\nname = 'fast'\nnodes = 3\nup_mbit_s = 4_000\ndown_mbit_s = 4_000\n";
        let scenario = scenario(40, [1, 1, 1], text, "");
        let count = |seed: u64, rate: f64| {
            node_rates(&scenario, seed).iter().filter(|rates| rates[0] == rate).count()
        };
        assert_eq!([10.0, 4_000.0, 1_000.0].map(|rate| count(1, rate)), [10, 3, 27]);
        let drawn = |seed: u64| classes(40, &scenario.fleet.class, seed);
        assert_ne!(drawn(1), drawn(2));
        assert_eq!(drawn(1), drawn(1));
    }

    #[test]
    fn racks_lie_within_cells_and_differ_by_a_node_at_most() {
        for (nodes, cells, per_cell) in [(10, 3, 2), (17, 2, 4), (1_000, 7, 3)] {
            let by_node = racks(nodes, cells * per_cell);
            assert_eq!(by_node.len(), nodes as usize);
            let cell_start = |cell: u32| (cell * nodes / cells) as usize;
            for cell in 0..cells {
                let members = &by_node[cell_start(cell)..cell_start(cell + 1)];
                assert!(members.iter().all(|rack| rack / per_cell == cell), "{nodes} {cells} {per_cell}");
            }
            let sizes = (0..cells * per_cell).map(|rack| by_node.iter().filter(|own| **own == rack).count());
            let (least, most) = (sizes.clone().min(), sizes.max());
            assert!(most.unwrap() - least.unwrap() <= 1);
        }
    }
}
