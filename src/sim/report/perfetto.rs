//! Traced nodes as JSON in the trace event format, which ui.perfetto.dev and chrome://tracing open.
//!
//! The fleet is a process with counters over time. Each traced node is a process whose threads are lanes: what overlaps in time
//! lies in lanes of its own, for slices of one thread must lie within each other. A transfer is a slice `wait`, from the ask to
//! the first byte, and a slice with the chunk's number, from there to the last one.
//! (Format: "Trace Event Format", the Chromium project, 2016.)

use super::tables::Run;
use crate::sim::record::{Sample, Trace, Transfer};
use serde_json::{Value, json};
use std::io::{self, Write};

/// The number of the process that stands for the fleet; that of a node is its number and [`FIRST_NODE`].
const FLEET: u64 = 1;
const FIRST_NODE: u64 = 10;

/// Writes what was recorded of a run.
///
/// # Errors
/// Those of `to`.
pub fn write(run: &Run<'_>, mut to: impl Write) -> io::Result<()> {
    let (report, record) = (run.report, run.record);
    let about = json!({
        "run": run.label,
        "seed": report.rollout.seed,
        "model": report.model,
        "result_hash": report.result_hash,
        "omitted": record.traces.iter().map(|trace| trace.omitted).sum::<u64>(),
    });
    write!(to, "{{\"displayTimeUnit\":\"ms\",\"otherData\":{about},\"traceEvents\":[")?;
    let mut first = true;
    let mut put = |event: &Value| {
        to.write_all(if std::mem::take(&mut first) { b"\n" } else { b",\n" })?;
        serde_json::to_writer(&mut to, event).map_err(io::Error::from)
    };
    put(&name("process_name", FLEET, 0, "fleet"))?;
    let mut before = Sample::default();
    for sample in &record.samples {
        for counter in counters(&before, sample) {
            put(&counter)?;
        }
        before = *sample;
    }
    for trace in &record.traces {
        let process = FIRST_NODE + u64::from(trace.node);
        let node = record.nodes.get(trace.node as usize);
        let place =
            node.map_or_else(String::new, |node| format!(" (region {}, cell {})", node.region, node.cell));
        put(&name("process_name", process, 0, &format!("node {}{place}", trace.node)))?;
        for (lane, transfers) in (1..).zip(lanes(trace)) {
            put(&name("thread_name", process, lane, &format!("lane {lane}")))?;
            for transfer in transfers {
                for slice in slices(process, lane, transfer).into_iter().flatten() {
                    put(&slice)?;
                }
            }
        }
    }
    to.write_all(b"\n]}\n")
}

fn name(what: &str, process: u64, lane: u64, text: &str) -> Value {
    json!({"ph": "M", "name": what, "pid": process, "tid": lane, "args": {"name": text}})
}

fn micros(seconds: f64) -> f64 {
    seconds * 1e6
}

fn counters(before: &Sample, now: &Sample) -> [Value; 3] {
    let span = now.at_s - before.at_s;
    let rate = |now: u64, before: u64| if span > 0.0 { (now - before) as f64 / span / 1e6 } else { 0.0 };
    let counter = |name: &str, at_s: f64, args: Value| json!({"ph": "C", "name": name, "pid": FLEET, "tid": 0, "ts": micros(at_s), "args": args});
    // A rate is of the time since the sample before.
    let rates = json!({
        "out of the strata": rate(now.strata_bytes, before.strata_bytes),
        "between regions": rate(now.between_regions_bytes, before.between_regions_bytes),
    });
    let states = json!({"receiving": now.receiving, "waiting": now.waiting, "idle": now.idle});
    [
        counter("nodes with everything", now.at_s, json!({"nodes": now.completed})),
        counter("other nodes", now.at_s, states),
        counter("MB/s", before.at_s, rates),
    ]
}

/// Transfers by lane, those of a lane one after the other.
fn lanes(trace: &Trace) -> Vec<Vec<&Transfer>> {
    let mut order: Vec<&Transfer> = trace.transfers.iter().collect();
    order.sort_by(|a, b| a.asked_s.total_cmp(&b.asked_s));
    let mut lanes: Vec<Vec<&Transfer>> = Vec::new();
    for transfer in order {
        let is_free =
            |lane: &&mut Vec<&Transfer>| lane.last().is_none_or(|last| last.ended_s <= transfer.asked_s);
        match lanes.iter_mut().find(is_free) {
            Some(lane) => lane.push(transfer),
            None => lanes.push(vec![transfer]),
        }
    }
    lanes
}

fn slices(process: u64, lane: u64, transfer: &Transfer) -> [Option<Value>; 2] {
    let from = transfer.from.map_or_else(|| "the stratum".to_owned(), |from| format!("node {from}"));
    let slice = |name: String, begin_s: f64, end_s: f64| {
        let (begin, span) = (micros(begin_s), micros(end_s - begin_s));
        let args = json!({"chunk": transfer.chunk, "from": from, "outcome": transfer.outcome.text()});
        json!({"ph": "X", "name": name, "cat": "transfer", "pid": process, "tid": lane, "ts": begin, "dur": span, "args": args})
    };
    let (asked_s, ended_s) = (transfer.asked_s, transfer.ended_s);
    let began_s = transfer.began_s.unwrap_or(ended_s);
    let waited = (began_s > asked_s).then(|| slice("wait".to_owned(), asked_s, began_s));
    let moved = transfer.began_s.map(|began_s| slice(format!("chunk {}", transfer.chunk), began_s, ended_s));
    [waited, moved]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sim::record::Outcome;
    use crate::sim::report::testing::run;
    use std::collections::BTreeMap;

    fn events() -> (Vec<Value>, Vec<Trace>) {
        let (_, report, record) = run(1);
        let run = Run { label: "a \"b\"", report: &report, record: &record };
        let mut text = Vec::new();
        write(&run, &mut text).unwrap();
        let all: Value = serde_json::from_slice(&text).unwrap();
        assert_eq!(all["otherData"]["run"], "a \"b\"");
        (all["traceEvents"].as_array().unwrap().clone(), record.traces)
    }

    #[test]
    fn slices_of_a_lane_do_not_overlap_and_each_transfer_is_there() {
        let (events, traces) = events();
        let mut lanes: BTreeMap<(u64, u64), Vec<(f64, f64)>> = BTreeMap::new();
        let mut received = 0;
        for event in events.iter().filter(|event| event["ph"] == "X") {
            let number = |key: &str| event[key].as_f64().unwrap();
            let lane = (event["pid"].as_u64().unwrap(), event["tid"].as_u64().unwrap());
            lanes.entry(lane).or_default().push((number("ts"), number("ts") + number("dur")));
            received += usize::from(event["args"]["outcome"] == "received" && event["name"] != "wait");
        }
        for spans in lanes.values() {
            assert!(spans.windows(2).all(|pair| pair[0].1 <= pair[1].0 + 1e-6), "{spans:?}");
        }
        let came = |trace: &Trace| trace.transfers.iter().filter(|t| t.outcome == Outcome::Received).count();
        assert_eq!(received, traces.iter().map(came).sum::<usize>());
        assert_eq!(lanes.keys().map(|lane| lane.0).collect::<std::collections::BTreeSet<_>>().len(), 2);
    }

    #[test]
    fn processes_have_names_and_counters_lead_to_the_end() {
        let (events, _) = events();
        let names: Vec<&str> = events
            .iter()
            .filter(|event| event["name"] == "process_name")
            .filter_map(|event| event["args"]["name"].as_str())
            .collect();
        assert_eq!(names, ["fleet", "node 3 (region 0, cell 0)", "node 150 (region 1, cell 3)"]);
        let last = events.iter().rfind(|event| event["name"] == "nodes with everything").unwrap();
        assert_eq!(last["args"]["nodes"], 200);
    }

    #[test]
    fn what_never_began_is_a_wait() {
        let transfer = Transfer {
            chunk: 4,
            from: None,
            asked_s: 1.0,
            began_s: None,
            ended_s: 1.5,
            outcome: Outcome::Withdrawn,
        };
        let [wait, moved] = slices(9, 1, &transfer);
        assert_eq!((wait.unwrap()["dur"].as_f64(), moved), (Some(500_000.0), None));
    }
}
