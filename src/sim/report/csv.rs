//! Tables as CSV after RFC 4180: a line with the names of the columns, then a line a row.

use super::tables::{Run, Table, Value};
use std::io::{self, Write};

/// Writes one table, run after run.
#[derive(Debug)]
pub struct Writer<W: Write> {
    table: Table,
    csv: csv::Writer<W>,
}

impl<W: Write> Writer<W> {
    /// Begins with the names of the columns.
    ///
    /// # Errors
    /// Those of `to`.
    pub fn new(table: Table, to: W) -> io::Result<Self> {
        let mut csv = csv::Writer::from_writer(to);
        csv.write_record(table.columns().iter().map(|column| column.0))?;
        Ok(Self { table, csv })
    }

    /// Appends the rows of a run.
    ///
    /// # Errors
    /// Those of the writer below.
    pub fn add(&mut self, run: &Run<'_>) -> io::Result<()> {
        let mut number = String::new();
        self.table.rows(run, |row| {
            for value in row {
                number.clear();
                match value {
                    Value::Text(text) => self.csv.write_field(text)?,
                    Value::Real(real) if !real.is_finite() => self.csv.write_field("")?,
                    value => {
                        set(&mut number, value);
                        self.csv.write_field(&number)?;
                    }
                }
            }
            // Ends the line.
            self.csv.write_record(None::<&[u8]>)
        })?;
        Ok(())
    }

    /// Hands back the writer below, with everything written to it.
    ///
    /// # Errors
    /// Those of the writer below.
    pub fn finish(self) -> io::Result<W> {
        self.csv.into_inner().map_err(csv::IntoInnerError::into_error)
    }
}

/// Numbers are written so that they read back as the same.
fn set(text: &mut String, value: &Value<'_>) {
    use std::fmt::Write as _;
    // A String takes everything.
    let _ = match value {
        Value::Text(other) => text.write_str(other),
        Value::Whole(whole) => write!(text, "{whole}"),
        Value::Real(real) => write!(text, "{real}"),
    };
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sim::report::testing::run;

    #[test]
    fn what_is_written_reads_back_as_the_same() {
        let (_, report, mut record) = run(1);
        record.nodes[7].end_s = None;
        record.links[0].name = "a, \"b\"\nc".to_owned();
        let run = Run { label: "über, alles", report: &report, record: &record };
        for table in Table::ALL {
            let mut writer = Writer::new(table, Vec::new()).unwrap();
            writer.add(&run).unwrap();
            writer.add(&run).unwrap();
            let bytes = writer.finish().unwrap();
            let mut reader = csv::Reader::from_reader(bytes.as_slice());
            let names: Vec<&str> = table.columns().iter().map(|column| column.0).collect();
            assert_eq!(reader.headers().unwrap(), names);
            let rows: Vec<csv::StringRecord> = reader.records().map(Result::unwrap).collect();
            let (first, second) = rows.split_at(rows.len() / 2);
            assert_eq!(first, second, "{}", table.name());
            let mut read = first.iter();
            table
                .rows(&run, |row| {
                    for (value, found) in row.iter().zip(read.next().unwrap()) {
                        match value {
                            Value::Text(text) => assert_eq!(*text, found),
                            Value::Whole(whole) => assert_eq!(*whole, found.parse::<u64>().unwrap()),
                            Value::Real(real) if real.is_nan() => assert_eq!(found, ""),
                            Value::Real(real) => assert_eq!(*real, found.parse::<f64>().unwrap()),
                        }
                    }
                    Ok::<_, ()>(())
                })
                .unwrap();
            assert!(read.next().is_none());
        }
    }
}
