//! What `starling simulate` writes beside its table: a report for people, tables and traces for other programs.

use super::CliError;
use crate::sim::record::TRACED_MAX;
use crate::sim::report::tables::{Run, Table};
use crate::sim::report::{Digest, csv, html, perfetto, svg, verdict};
use crate::sim::{Plan, Record, Recording, Report, Scenario};
use std::fs::{self, File};
use std::io::{self, BufWriter, Write as _};
use std::path::{Path, PathBuf};

/// Where reports go.
#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Reports")]
pub(super) struct Options {
    /// Write a report: one HTML file with verdict, charts and tables, which needs no network
    #[arg(long, value_name = "FILE")]
    report: Option<PathBuf>,
    /// Write the tables of runs, nodes, links and samples as CSV
    #[arg(long, value_name = "DIR")]
    csv: Option<PathBuf>,
    /// Write the same tables as Parquet
    #[cfg(feature = "node")]
    #[arg(long, value_name = "DIR")]
    parquet: Option<PathBuf>,
    /// Write the report's charts, a file each
    #[arg(long, value_name = "DIR")]
    svg: Option<PathBuf>,
    /// Write what some nodes asked for and received, for ui.perfetto.dev
    #[arg(long, value_name = "FILE")]
    perfetto: Option<PathBuf>,
    /// Nodes that --perfetto is about, at most 16 [default: eight, spread over the fleet]
    #[arg(long, value_name = "N,N", value_delimiter = ',', requires = "perfetto")]
    trace_nodes: Vec<u32>,
}

/// A file that gets its name when it is complete.
#[derive(Debug)]
struct Pending {
    path: PathBuf,
    file: Part,
}

type Part = BufWriter<File>;

impl Pending {
    /// Before the run: what cannot be written is known before anybody waited for it.
    fn create(path: &Path) -> Result<Self, CliError> {
        let part = part(path);
        let file = File::create(&part).map_err(|error| unwritable(&part, &error))?;
        Ok(Self { path: path.to_owned(), file: BufWriter::new(file) })
    }

    fn finish(self) -> Result<(), CliError> {
        complete(&self.path, self.file)
    }
}

fn part(path: &Path) -> PathBuf {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(".part");
    path.with_file_name(name)
}

fn complete(path: &Path, mut file: Part) -> Result<(), CliError> {
    file.flush().map_err(|error| unwritable(path, &error))?;
    fs::rename(part(path), path).map_err(|error| unwritable(path, &error))
}

fn unwritable(path: &Path, error: &io::Error) -> CliError {
    CliError::failed(format!("{}: {error}", path.display()))
        .hint("reports go where this user may write; their folder is made, folders above it are not")
}

fn directory(path: &Path) -> Result<(), CliError> {
    match fs::create_dir(path) {
        Err(error) if !path.is_dir() => Err(unwritable(path, &error)),
        _ => Ok(()),
    }
}

/// A table that is being written.
#[derive(Debug)]
enum Sheet {
    Csv(csv::Writer<Part>),
    #[cfg(feature = "node")]
    Parquet(crate::sim::report::parquet::Writer<Part>),
}

/// Reports under way.
#[derive(Debug)]
pub(super) struct Reports {
    title: String,
    scenario: String,
    html: Option<Pending>,
    svg: Option<PathBuf>,
    perfetto: Option<Pending>,
    sheets: Vec<(PathBuf, Sheet)>,
    traced: Vec<u32>,
    /// Whether anything needs the digests of the runs.
    tells: bool,
    digests: Vec<Digest>,
}

impl Options {
    /// Opens what will be written.
    pub(super) fn begin(&self, file: &Path, text: &str, plan: &Plan) -> Result<Reports, CliError> {
        let nodes = plan.cases.first().map_or(0, |case| case.scenario.fleet.nodes);
        if let Some(node) = self.trace_nodes.iter().find(|node| **node >= nodes) {
            return Err(CliError::usage(format!(
                "--trace-nodes {node}: the scenario has nodes 0 to {}",
                nodes.saturating_sub(1)
            )));
        }
        if self.trace_nodes.len() > TRACED_MAX {
            return Err(CliError::usage(format!("--trace-nodes takes at most {} nodes", TRACED_MAX)));
        }
        let mut sheets = Vec::new();
        for table in Table::ALL {
            if let Some(path) = &self.csv {
                directory(path)?;
                let Pending { path, file } = Pending::create(&path.join(format!("{}.csv", table.name())))?;
                let sheet = csv::Writer::new(table, file).map_err(|error| unwritable(&path, &error))?;
                sheets.push((path, Sheet::Csv(sheet)));
            }
            #[cfg(feature = "node")]
            if let Some(path) = &self.parquet {
                directory(path)?;
                let Pending { path, file } =
                    Pending::create(&path.join(format!("{}.parquet", table.name())))?;
                let sheet = crate::sim::report::parquet::Writer::new(table, file);
                let sheet = sheet.map_err(|error| unwritable(&path, &error))?;
                sheets.push((path, Sheet::Parquet(sheet)));
            }
        }
        if let Some(path) = &self.svg {
            directory(path)?;
            // Which charts there will be is not known yet, but there is one that all reports have.
            Pending::create(&path.join("completion.svg"))?;
        }
        let traced = match (&self.perfetto, self.trace_nodes.is_empty()) {
            (None, _) => Vec::new(),
            (Some(_), true) => Recording::spread(nodes).traced,
            (Some(_), false) => self.trace_nodes.clone(),
        };
        Ok(Reports {
            title: file.file_stem().map_or_else(String::new, |name| name.to_string_lossy().into_owned()),
            scenario: text.to_owned(),
            html: self.report.as_deref().map(Pending::create).transpose()?,
            svg: self.svg.clone(),
            perfetto: self.perfetto.as_deref().map(Pending::create).transpose()?,
            sheets,
            traced,
            tells: self.report.is_some() || self.svg.is_some() || plan.cases.len() == 1,
            digests: Vec::new(),
        })
    }
}

impl Reports {
    /// What must be recorded of each run.
    pub(super) fn recording(&self) -> Recording {
        Recording { traced: self.traced.clone() }
    }

    /// Takes a run. Runs of one label differ by their seeds alone; the first run is the one that is traced.
    pub(super) fn add(
        &mut self,
        label: &str,
        scenario: &Scenario,
        report: &Report,
        record: &Record,
    ) -> Result<(), CliError> {
        let run = Run { label, report, record };
        for (path, sheet) in &mut self.sheets {
            match sheet {
                Sheet::Csv(writer) => writer.add(&run),
                #[cfg(feature = "node")]
                Sheet::Parquet(writer) => writer.add(&run),
            }
            .map_err(|error| unwritable(path, &error))?;
        }
        if let Some(mut pending) = self.perfetto.take() {
            let written = perfetto::write(&run, &mut pending.file);
            written.map_err(|error| unwritable(&pending.path, &error))?;
            pending.finish()?;
        }
        if self.tells {
            self.digests.push(Digest::new(label, scenario, report, record));
        }
        Ok(())
    }

    /// Completes all files. Returns the verdict.
    pub(super) fn finish(self, command: &str) -> Result<String, CliError> {
        for (path, sheet) in self.sheets {
            let file = match sheet {
                Sheet::Csv(writer) => writer.finish(),
                #[cfg(feature = "node")]
                Sheet::Parquet(writer) => writer.finish(),
            };
            complete(&path, file.map_err(|error| unwritable(&path, &error))?)?;
        }
        if let Some(folder) = &self.svg {
            for (name, text) in svg::files(&self.digests) {
                let mut pending = Pending::create(&folder.join(format!("{name}.svg")))?;
                let written = pending.file.write_all(text.as_bytes());
                written.map_err(|error| unwritable(&pending.path, &error))?;
                pending.finish()?;
            }
        }
        if let Some(mut pending) = self.html {
            let about = html::About { title: &self.title, scenario: &self.scenario, command };
            let written = html::write(&about, &self.digests, &mut pending.file);
            written.map_err(|error| unwritable(&pending.path, &error))?;
            pending.finish()?;
        }
        Ok(verdict::text(&self.digests))
    }
}
