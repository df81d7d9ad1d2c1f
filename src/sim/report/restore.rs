//! A run out of the rows of its tables, as it was when they were written: whatever can be made of a run can be made of its tables.

use super::Report;
use super::tables::{Kind, Table, Value, figures};
use crate::sim::bound::Term;
use crate::sim::envelope;
use crate::sim::network::LinksOfAKind;
use crate::sim::readers::{Distribution, Readers};
use crate::sim::record::{LinkRecord, NodeRecord, Record, Sample, class_names};
use crate::sim::rollout::Rollout;
use crate::sim::root_spread::RootSpread;
use crate::sim::scenario::Scenario;

/// What takes the rows of a run in a table, one after the other.
pub type Take<'t> = dyn FnMut(&[Value<'_>]) -> Result<(), String> + 't;

/// Makes a run of its rows, whatever its label is there. `rows` hands out all rows that the run has in a table; each table is asked
/// for once.
///
/// # Errors
/// What does not belong to the run, or those of `rows`.
pub fn restore(
    scenario: &Scenario,
    seed: u64,
    rows: &mut dyn FnMut(Table, &mut Take<'_>) -> Result<(), String>,
) -> Result<(Report, Record), String> {
    let mut all = |table: Table, take: &mut dyn FnMut(&mut Fields<'_, '_>) -> Result<(), String>| {
        rows(table, &mut |row| {
            let mut fields = Fields { table, number: 0, values: row };
            let (label, found) = (fields.text()?, fields.whole::<u64>()?);
            if found != seed {
                return Err(format!("{label} has seed {found} where seed {seed} is expected"));
            }
            take(&mut fields)
        })
    };
    let mut report = None;
    all(Table::Runs, &mut |fields| {
        report = Some(run(fields, scenario, seed)?);
        Ok(())
    })?;
    let mut report = report.ok_or_else(|| format!("the run with seed {seed} has no row"))?;
    let mut of_readers = Vec::new();
    all(Table::Readers, &mut |fields| {
        let figure = fields.text()?.to_owned();
        let [p50, p90, p99, max] = fields.reals()?;
        of_readers.push((figure, Distribution { p50, p90, p99, max }));
        Ok(())
    })?;
    report.readers = with_figures(report.readers, &of_readers)?;
    all(Table::Kinds, &mut |fields| {
        report.links.push(kind(fields)?);
        Ok(())
    })?;
    let mut record = Record { classes: class_names(scenario), ..Record::default() };
    all(Table::Nodes, &mut |fields| {
        let node = node(fields, &record.classes, record.nodes.len())?;
        record.nodes.push(node);
        Ok(())
    })?;
    all(Table::Links, &mut |fields| {
        record.links.push(link(fields)?);
        Ok(())
    })?;
    // Rows of one link stand behind each other, and the links in their order.
    let mut place = 0;
    all(Table::LinkSamples, &mut |fields| {
        let (name, _, bytes) = (fields.text()?, fields.real()?, fields.real()?);
        let ahead = record.links.iter().skip(place).position(|link| link.name == name);
        place += ahead.ok_or_else(|| format!("samples of {name}, which is not the next link"))?;
        record.links[place].over_time.push(bytes);
        Ok(())
    })?;
    all(Table::Samples, &mut |fields| {
        record.samples.push(sample(fields)?);
        Ok(())
    })?;
    Ok((report, record))
}

/// The fields of a row, taken one after the other in the order of the table's columns.
struct Fields<'r, 'a> {
    table: Table,
    number: usize,
    values: &'r [Value<'a>],
}

impl<'a> Fields<'_, 'a> {
    fn next(&mut self, kind: Kind) -> Result<Value<'a>, String> {
        let value = self.values.get(self.number).copied();
        self.number += 1;
        value.ok_or_else(|| format!("{} has no column {} of {kind:?}", self.table.name(), self.number))
    }

    fn wrong<T>(&self, what: &str) -> Result<T, String> {
        let name = self.table.columns().get(self.number - 1).map_or("", |column| column.0);
        Err(format!("{}.{name} is not {what}", self.table.name()))
    }

    fn text(&mut self) -> Result<&'a str, String> {
        match self.next(Kind::Text)? {
            Value::Text(text) => Ok(text),
            _ => self.wrong("a text"),
        }
    }

    fn whole<T: TryFrom<u64>>(&mut self) -> Result<T, String> {
        let Value::Whole(whole) = self.next(Kind::Whole)? else { return self.wrong("a whole number") };
        T::try_from(whole).or_else(|_| self.wrong("so small as it must be"))
    }

    /// `NaN` where there is none.
    fn real(&mut self) -> Result<f64, String> {
        match self.next(Kind::Real)? {
            Value::Real(real) => Ok(real),
            _ => self.wrong("a number"),
        }
    }

    fn reals<const COUNT: usize>(&mut self) -> Result<[f64; COUNT], String> {
        let mut all = [f64::NAN; COUNT];
        for real in &mut all {
            *real = self.real()?;
        }
        Ok(all)
    }

    /// A text that the scenario says already.
    fn known(&mut self, text: &'static str) -> Result<&'static str, String> {
        let found = self.text()?;
        if found == text { Ok(text) } else { self.wrong(&format!("{text:?}, but {found:?}")) }
    }
}

fn run(fields: &mut Fields<'_, '_>, scenario: &Scenario, seed: u64) -> Result<Report, String> {
    let strategy = fields.known(scenario.strategy.name.text())?;
    let (nodes, completed) = (fields.whole()?, fields.whole()?);
    let [makespan_s, bound_s] = fields.reals()?;
    let word = fields.text()?;
    let Some(binding_term) = Term::ALL.into_iter().find(|term| term.word() == word) else {
        return fields.wrong("a term of the bound");
    };
    let [makespan_over_bound, p50_s, p99_s, p999_s, own_p50_s, own_p99_s, last_start_s] = fields.reals()?;
    let strata_bytes = fields.whole()?;
    let [strata_copies, most_into_a_cell_copies, most_given_copies] = fields.reals()?;
    let (liars, deaths) = (fields.whole()?, fields.whole()?);
    let (doubts, asides) = (fields.whole()?, fields.whole()?);
    let (messages, transfers, events) = (fields.whole()?, fields.whole()?, fields.whole()?);
    let (readers, read_all, stalls) = (fields.whole()?, fields.whole()?, fields.whole()?);
    let without_stall = fields.real()?;
    let none = Distribution { p50: f64::NAN, p90: f64::NAN, p99: f64::NAN, max: f64::NAN };
    let readers = (readers > 0).then_some(Readers {
        readers,
        read_all,
        first_chunk_s: none,
        read_s: none,
        stalls,
        stalls_each: none,
        stalled_s: none,
        longest_stall_s: none,
        without_stall,
    });
    let heard = fields.whole()?;
    let [p50, p90, p99, max] = fields.reals()?;
    let root_messages: u64 = fields.whole()?;
    let root =
        scenario.arrival.as_ref().is_some_and(|arrival| arrival.news.is_some()).then_some(RootSpread {
            heard,
            heard_s: Distribution { p50, p90, p99, max },
            messages: root_messages,
            messages_each: root_messages as f64 / f64::from(scenario.fleet.nodes),
        });
    let result_hash = fields.text()?.to_owned();
    Ok(Report {
        strategy,
        rollout: Rollout {
            seed,
            nodes,
            completed,
            makespan_s,
            bound_s,
            binding_term,
            makespan_over_bound,
            p50_s,
            p99_s,
            p999_s,
            strata_bytes,
            strata_copies,
            most_into_a_cell_copies,
            most_given_copies,
        },
        last_start_s,
        own_p50_s,
        own_p99_s,
        messages,
        transfers,
        events,
        liars,
        deaths,
        doubts,
        asides,
        readers,
        root,
        links: Vec::new(),
        model: fields.known(scenario.network.model.text())?,
        accuracy: envelope::quote(scenario),
        result_hash,
    })
}

/// The readers with their distributions.
fn with_figures(
    readers: Option<Readers>,
    found: &[(String, Distribution)],
) -> Result<Option<Readers>, String> {
    let Some(mut readers) = readers else {
        let none = found.is_empty().then_some(None);
        return none.ok_or_else(|| "figures of readers, where nobody reads".to_owned());
    };
    let names = figures(&readers).map(|(name, _)| name);
    let [first_chunk_s, read_s, stalls_each, stalled_s, longest_stall_s] = found else {
        return Err(format!("{} figures of readers, not {}", found.len(), names.len()));
    };
    if !found.iter().zip(names).all(|((found, _), name)| found == name) {
        return Err(format!("figures of readers that are not {}", names.join(", ")));
    }
    readers.first_chunk_s = first_chunk_s.1;
    readers.read_s = read_s.1;
    readers.stalls_each = stalls_each.1;
    readers.stalled_s = stalled_s.1;
    readers.longest_stall_s = longest_stall_s.1;
    Ok(Some(readers))
}

fn kind(fields: &mut Fields<'_, '_>) -> Result<LinksOfAKind, String> {
    let (kind, links) = (fields.text()?.to_owned(), fields.whole()?);
    let [gigabytes, busy_share] = fields.reals()?;
    let busiest = fields.text()?.to_owned();
    let [busiest_gigabytes, busiest_share] = fields.reals()?;
    Ok(LinksOfAKind { kind, links, gigabytes, busy_share, busiest, busiest_gigabytes, busiest_share })
}

fn node(fields: &mut Fields<'_, '_>, classes: &[String], expected: usize) -> Result<NodeRecord, String> {
    let number: usize = fields.whole()?;
    if number != expected {
        return Err(format!("node {number} stands where node {expected} is expected"));
    }
    let name = fields.text()?;
    let Some(class) = classes.iter().position(|class| class == name) else {
        return fields.wrong("a class of the scenario");
    };
    let class = u16::try_from(class).unwrap_or(u16::MAX);
    let (region, cell, liar) = (fields.whole()?, fields.whole()?, fields.whole::<u64>()? == 1);
    let [start_s, end_s] = fields.reals()?;
    let given_up = fields.whole()?;
    let (from_strata, from_peers, given) = (fields.whole()?, fields.whole()?, fields.whole()?);
    let [receiving_s, waiting_s, idle_s] = fields.reals()?;
    let end_s = (!end_s.is_nan()).then_some(end_s);
    Ok(NodeRecord {
        class,
        region,
        cell,
        liar,
        start_s,
        end_s,
        given_up,
        from_strata,
        from_peers,
        given,
        receiving_s,
        waiting_s,
        idle_s,
    })
}

fn link(fields: &mut Fields<'_, '_>) -> Result<LinkRecord, String> {
    let name = fields.text()?.to_owned();
    let [capacity, bytes, busy_share] = fields.reals()?;
    Ok(LinkRecord { name, capacity, bytes, busy_share, over_time: Vec::new() })
}

fn sample(fields: &mut Fields<'_, '_>) -> Result<Sample, String> {
    Ok(Sample {
        at_s: fields.real()?,
        completed: fields.whole()?,
        receiving: fields.whole()?,
        waiting: fields.whole()?,
        idle: fields.whole()?,
        strata_bytes: fields.whole()?,
        between_regions_bytes: fields.whole()?,
    })
}

#[cfg(test)]
mod tests {
    use super::super::tables::Run;
    use super::*;
    use crate::sim::report::testing::run;

    fn restored(scenario: &Scenario, of: &Run<'_>) -> Result<(Report, Record), String> {
        restore(scenario, of.report.rollout.seed, &mut |table, take| table.rows(of, take))
    }

    #[test]
    fn a_run_comes_back_out_of_its_rows_as_it_was() {
        let (scenario, mut report, mut record) = run(1);
        assert!(report.readers.is_some() && record.links.len() > 5 && record.samples.len() > 20);
        record.nodes[7].end_s = None;
        record.links[2].over_time.clear();
        report.links[1].busy_share = 0.1 + 0.2;
        let (found, left) =
            restored(&scenario, &Run { label: "a", report: &report, record: &record }).unwrap();
        assert_eq!(found, report);
        record.traces.clear();
        assert_eq!(left, record);

        report.readers = None;
        let (found, _) = restored(&scenario, &Run { label: "a", report: &report, record: &record }).unwrap();
        assert_eq!(found, report);
    }

    #[test]
    fn what_there_is_none_of_comes_back_as_that() {
        let (scenario, mut report, record) = run(1);
        (report.rollout.makespan_s, report.own_p99_s) = (f64::NAN, f64::NAN);
        let (found, _) = restored(&scenario, &Run { label: "a", report: &report, record: &record }).unwrap();
        let text = |report: &Report| serde_json::to_string(report).unwrap();
        assert!(text(&found).contains("\"makespan_s\":null"), "{}", text(&found));
        assert_eq!(text(&found), text(&report));
    }

    #[test]
    fn rows_of_another_run_or_scenario_are_refused() {
        let (mut scenario, report, mut record) = run(1);
        let rows = &mut |table: Table, take: &mut Take<'_>| {
            table.rows(&Run { label: "a", report: &report, record: &record }, take)
        };
        assert_eq!(restore(&scenario, 2, rows).unwrap_err(), "a has seed 1 where seed 2 is expected");
        record.links.swap(1, 3);
        let mut swapped = record.clone();
        swapped.links.swap(1, 3);
        let of_link = &mut |table: Table, take: &mut Take<'_>| {
            let record = if table == Table::LinkSamples { &swapped } else { &record };
            table.rows(&Run { label: "a", report: &report, record }, take)
        };
        let error = restore(&scenario, 1, of_link).unwrap_err();
        assert!(error.contains("which is not the next link"), "{error}");
        scenario.strategy.name = crate::sim::scenario::Name::Kraken;
        let error = restored(&scenario, &Run { label: "a", report: &report, record: &record }).unwrap_err();
        assert_eq!(error, "runs.strategy is not \"kraken\", but \"starling\"");
    }
}
