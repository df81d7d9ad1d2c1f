//! Calibration finds what was hidden in recordings that a simulation made, and says how far off it is.

use super::*;

/// What a simulation with these parameters would have left, as a recording.
fn recorded(trial: &Trial, hidden: &Calibrated) -> Recorded {
    let replaced_at_ms = trial.killed.as_ref().map(|killed| killed.at_ms + 1_500);
    let scenario = Scenario::parse(&trial.simulation(hidden, replaced_at_ms)).unwrap();
    let mut engine = Engine::new(&scenario, trial.seed, 1);
    engine.run(&mut |_| {});
    let links = engine.usage();
    let bytes = |kind: &str| {
        let found = links.iter().find(|links| links.kind == kind);
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "bytes of a small run")]
        found.map(|links| (links.gigabytes * 1e9) as u64)
    };
    let dead = |place: u32| trial.killed.as_ref().is_some_and(|killed| killed.nodes.contains(&place));
    let node = |place: u32, killed: bool, began_s: f64| RecordedNode {
        place,
        killed,
        began_s: Some(began_s),
        completed_s: engine.machines[place as usize]
            .finished
            .map(crate::model::Time::as_secs_f64)
            .filter(|_| !killed),
        up_bytes: if place == 0 { bytes("uplinks of nodes").unwrap() } else { 0 },
        down_bytes: if place == 0 { bytes("downlinks of nodes").unwrap() } else { 0 },
    };
    let mut nodes: Vec<RecordedNode> = (0..trial.nodes).map(|place| node(place, dead(place), 0.0)).collect();
    let replaced_s = replaced_at_ms.unwrap_or(0) as f64 / 1e3;
    nodes.extend((0..trial.nodes).filter(|place| dead(*place)).map(|place| node(place, false, replaced_s)));
    Recorded {
        format: FORMAT,
        grid_seed: 1,
        grid_trials: 48,
        drawn: trial.clone(),
        trial: trial.clone(),
        recorded_unix_s: 0,
        version: String::new(),
        model: String::new(),
        cpu: 0.4,
        void: false,
        problems: Vec::new(),
        strata_bytes: engine.strata_bytes,
        strata_link_bytes: bytes("uplink of the stratum").unwrap(),
        nodes,
        into_cells_bytes: bytes("downlinks of cells").into_iter().collect(),
        keys: None,
    }
}

/// Small and quick trials of all kinds.
fn trials() -> Vec<Trial> {
    let small = |mut trial: Trial| {
        trial.nodes = trial.nodes.min(16);
        (trial.chunks, trial.in_flight) = (trial.chunks.clamp(32, 96), trial.in_flight.max(4));
        if let Some(killed) = &mut trial.killed {
            killed.nodes = crate::sim::churn::victims(trial.nodes, killed.per_cent, trial.seed, 0);
            killed.at_ms = 500;
        }
        trial
    };
    draw(5, 26).into_iter().map(small).collect()
}

const HIDDEN: Calibrated = Calibrated {
    latency_us: 1_000,
    header_per_mille: 95,
    request_bytes: 2_800,
    connect_bytes: 8_000,
    connect_us: 5_000,
    first_byte_us: 3_000,
    send_buffer_ms: 150,
    gossip_bytes_per_s: 9_000,
    gossip_out_bytes_per_s: 3_000,
    prepare_ms: 700,
    noticed_after_ms: 4_000,
    noticed_within_ms: 6_000,
};

#[test]
fn a_recording_of_a_simulation_is_off_by_nothing_with_the_parameters_that_made_it() {
    for trial in trials() {
        let recorded = recorded(&trial, &HIDDEN);
        let errors = recorded.figures().errors(&recorded.simulated(&HIDDEN, 0).unwrap());
        for (error, figure) in errors.iter().zip(FIGURES) {
            assert!(error.is_nan() || error.abs() < 1e-6, "{figure}: {error} of {trial:?}");
        }
        assert_eq!(errors[8].is_nan(), trial.cells == 1);
    }
}

#[test]
fn calibration_finds_hidden_parameters_and_the_other_half_confirms_them() {
    let mut all: Vec<Recorded> = trials().iter().map(|trial| recorded(trial, &HIDDEN)).collect();
    all[3].void = true;
    all[4].problems.push("a node did not get everything".to_owned());
    let mut rounds = 0;
    let found = validate(&all, 9, 2, &mut |round, most| {
        assert!(round <= most);
        rounds = round;
    })
    .unwrap();
    assert!(rounds > 10);
    assert_eq!(found.left_out.iter().map(|out| out.trial).collect::<Vec<_>>(), [3, 4]);
    assert_eq!((found.trials.len(), found.trials.iter().filter(|one| one.fitted).count()), (24, 12));
    // So small contents come in another order with each change of a delay; what is left is that. One draw: the recordings are one.
    let others = |one: &&Recorded| {
        found.trials.iter().any(|other| !other.fitted && other.trial.number == one.drawn.number)
    };
    let others: Vec<&Recorded> = all.iter().filter(others).collect();
    let errors = |calibrated| rows(&compare(&others, &calibrated, 1, 2).unwrap(), 9);
    let (guessed, calibrated) = (errors(Calibrated::START), errors(found.calibrated));
    // Times of contents as small as these scatter by 4 % whatever the delays are; bytes on the links do not.
    assert!(calibrated[MAKESPAN].accuracy.median[0] < 0.06, "{:?}", calibrated[MAKESPAN]);
    for figure in [5, 6, 7] {
        let [before, after] = [&guessed, &calibrated].map(|rows| rows[figure].accuracy.median[0]);
        assert!(after < 0.04 && after < 0.85 * before, "{}: {before}, {after}", FIGURES[figure]);
    }
    for (promise, (place, ..)) in found.promises.iter().zip(PROMISES) {
        let accuracy = &found.held_back[place].accuracy;
        let holds = promise.median_most.is_none_or(|most| accuracy.median[0] <= most)
            && accuracy.most[0] <= promise.nine_of_ten_most;
        assert_eq!((promise.figure, promise.holds), (FIGURES[place], holds));
    }
    let worst = found.trials.iter().find(|one| one.trial.number == found.worst).unwrap();
    assert!(!worst.fitted);
    let more =
        found.trials.iter().filter(|one| !one.fitted).all(|one| one.errors[0].abs() <= worst.errors[0].abs());
    assert!(more);
    // As text, for what is not there (`NaN`) equals nothing.
    let with =
        |threads: usize| serde_json::to_string(&test(&all, found.calibrated, 9, threads).unwrap()).unwrap();
    assert_eq!(with(1), with(2), "the number of threads changes nothing");
    assert_eq!(with(1), serde_json::to_string(&found).unwrap());
}

#[test]
fn what_misses_a_promise_is_said_to() {
    let mut all: Vec<Recorded> = trials().iter().map(|trial| recorded(trial, &HIDDEN)).collect();
    // Every second real run took half as long again, which no parameter explains.
    for one in all.iter_mut().step_by(2) {
        for node in &mut one.nodes {
            node.completed_s = node.completed_s.map(|at| at * 1.5);
        }
    }
    let found = test(&all, HIDDEN, 9, 2).unwrap();
    assert_eq!((found.promises[0].figure, found.promises[0].holds), ("makespan", false));
}

#[test]
fn few_recordings_are_refused() {
    let all: Vec<Recorded> = trials().iter().take(5).map(|trial| recorded(trial, &HIDDEN)).collect();
    let error = validate(&all, 1, 1, &mut |_, _| {}).unwrap_err();
    assert_eq!(error.to_string(), "5 of 5 recordings can be used, 16 are the least");
}

#[test]
fn calibrated_values_are_keys_of_a_scenario() {
    let trial = &draw(1, 12)[0];
    let mut document: toml::Table = trial.simulation(&Calibrated::START, None).parse().unwrap();
    let keys: toml::Table = HIDDEN.toml().parse().unwrap();
    for name in ["network", "content"] {
        let values = keys[name].as_table().unwrap().clone();
        document[name].as_table_mut().unwrap().extend(values);
    }
    let scenario = Scenario::parse(&document.to_string()).unwrap();
    assert_eq!((scenario.network.latency_us, scenario.content.prepare_ms), (1_000, 700));
    assert!(keys["deaths"]["noticed_after_ms"].as_integer() == Some(4_000));
}

/// What reports quote is what the recordings give that are committed with the program, with the values that are.
#[test]
fn reports_quote_what_the_committed_recordings_give() {
    let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("simulations/validation");
    let calibrated = std::fs::read_to_string(folder.join("calibrated.toml"));
    let Some(measured) = crate::sim::envelope::MEASURED else {
        assert!(calibrated.is_err(), "there are recordings, but reports say that there are none");
        return;
    };
    let keys: toml::Table = calibrated.unwrap().parse().unwrap();
    let values: serde_json::Map<String, serde_json::Value> = keys
        .values()
        .flat_map(|table| table.as_table().unwrap())
        .map(|(name, value)| (name.clone(), value.as_integer().unwrap().into()))
        .collect();
    let calibrated: Calibrated = serde_json::from_value(values.into()).unwrap();
    let mut recorded = Vec::new();
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_some_and(|extension| extension == "json") {
            recorded.push(serde_json::from_slice::<Recorded>(&std::fs::read(path).unwrap()).unwrap());
        }
    }
    let found = test(&recorded, calibrated, 1, 2).unwrap();
    assert_eq!(found.trials.iter().filter(|one| !one.fitted).count(), measured.trials as usize);
    assert_eq!(found.trials.len(), measured.recorded as usize);
    for (place, quoted) in [(MAKESPAN, measured.makespan), (P99, measured.p99), (EGRESS, measured.egress)] {
        let Row { figure, accuracy } = &found.held_back[place];
        for (quoted, found) in quoted.into_iter().zip([accuracy.median[0], accuracy.most[0]]) {
            assert!((quoted - found).abs() < 0.001, "{figure}: {quoted} is quoted, {found} is so");
        }
    }
    assert!((measured.worst_makespan - found.held_back[MAKESPAN].accuracy.worst).abs() < 0.001);
}

/// Who is the home of what is as the recording says, and what no key is given for is drawn.
#[test]
fn homes_are_those_of_the_recording() {
    let trial = trials().into_iter().find(|trial| trial.cells == 3).unwrap();
    let slices = trial.bytes().div_ceil(1 << 20);
    let keys = |salt: u64| Keys {
        nodes: (0..u64::from(trial.nodes)).map(|node| crate::model::mix(salt ^ node)).collect(),
        cells: (0..3).map(|cell| crate::model::mix(salt ^ (1_000 + cell))).collect(),
        slices: (0..slices).map(|slice| crate::model::mix(salt ^ (2_000 + slice))).collect(),
    };
    let drawn = recorded(&trial, &HIDDEN);
    let figures = |keys: Option<Keys>| Recorded { keys, ..drawn.clone() }.simulated(&HIDDEN, 0).unwrap();
    assert_eq!(figures(Some(keys(1))), figures(Some(keys(1))));
    assert_ne!(figures(Some(keys(1))), figures(Some(keys(2))));
    assert_eq!(figures(Some(Keys::default())), figures(None));
    // Another draw is another run with the same homes.
    assert_ne!(drawn.simulated(&HIDDEN, 1).unwrap(), drawn.simulated(&HIDDEN, 0).unwrap());
}
