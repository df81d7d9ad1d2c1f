//! Tables as Parquet, for tools that work on columns. Nothing is compressed: dictionaries make the texts small, and the rest
//! needs no further library.

use super::tables::{Kind, Run, Table, Value};
use ::parquet::data_type::{ByteArray, ByteArrayType, DoubleType, Int64Type};
use ::parquet::errors::{ParquetError, Result};
use ::parquet::file::properties::WriterProperties;
use ::parquet::file::writer::SerializedFileWriter;
use ::parquet::schema::parser::parse_message_type;
use std::io::{self, Write};
use std::sync::Arc;

/// Rows that are gathered before they are written (guess: some tens of bytes each).
const ROWS: usize = 65_536;

/// Writes one table, run after run.
pub struct Writer<W: Write + Send> {
    table: Table,
    file: SerializedFileWriter<W>,
    columns: Vec<Values>,
    rows: usize,
}

impl<W: Write + Send> std::fmt::Debug for Writer<W> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Writer").field("table", &self.table).field("rows", &self.rows).finish_non_exhaustive()
    }
}

/// The gathered values of a column.
enum Values {
    Text(Vec<ByteArray>),
    Whole(Vec<i64>),
    /// And for each row whether it has one: 1 or 0.
    Real(Vec<f64>, Vec<i16>),
}

impl Values {
    fn new(kind: Kind) -> Self {
        match kind {
            Kind::Text => Self::Text(Vec::new()),
            Kind::Whole => Self::Whole(Vec::new()),
            Kind::Real => Self::Real(Vec::new(), Vec::new()),
        }
    }
}

/// The schema in Parquet's own notation.
fn schema(table: Table) -> String {
    let column = |(name, kind, _): &(&str, Kind, &str)| match kind {
        Kind::Text => format!("REQUIRED BYTE_ARRAY {name} (UTF8);"),
        Kind::Whole => format!("REQUIRED INT64 {name} (UINT_64);"),
        Kind::Real => format!("OPTIONAL DOUBLE {name};"),
    };
    let columns: Vec<String> = table.columns().iter().map(column).collect();
    format!("message {} {{ {} }}", table.name(), columns.join(" "))
}

fn failed(error: ParquetError) -> io::Error {
    io::Error::other(error)
}

impl<W: Write + Send> Writer<W> {
    /// Begins a file.
    ///
    /// # Errors
    /// Those of `to`.
    pub fn new(table: Table, to: W) -> io::Result<Self> {
        let schema = Arc::new(parse_message_type(&schema(table)).map_err(failed)?);
        let by = concat!("starling ", env!("CARGO_PKG_VERSION")).to_owned();
        let properties = WriterProperties::builder().set_created_by(by).build();
        let file = SerializedFileWriter::new(to, schema, Arc::new(properties)).map_err(failed)?;
        let columns = table.columns().iter().map(|column| Values::new(column.1)).collect();
        Ok(Self { table, file, columns, rows: 0 })
    }

    /// Appends the rows of a run.
    ///
    /// # Errors
    /// Those of the writer below.
    pub fn add(&mut self, run: &Run<'_>) -> io::Result<()> {
        self.table.rows(run, |row| self.take(row)).map_err(failed)
    }

    /// Ends the file and hands back the writer below.
    ///
    /// # Errors
    /// Those of the writer below.
    pub fn finish(mut self) -> io::Result<W> {
        self.flush().map_err(failed)?;
        self.file.into_inner().map_err(failed)
    }

    fn take(&mut self, row: &[Value<'_>]) -> Result<()> {
        for (values, value) in self.columns.iter_mut().zip(row) {
            match (values, value) {
                (Values::Text(values), Value::Text(text)) => values.push(ByteArray::from(*text)),
                (Values::Whole(values), Value::Whole(whole)) => values.push(whole.cast_signed()),
                (Values::Real(values, has), Value::Real(real)) => {
                    has.push(i16::from(real.is_finite()));
                    values.extend(real.is_finite().then_some(*real));
                }
                _ => unreachable!("rows have the kinds of their columns"),
            }
        }
        self.rows += 1;
        if self.rows < ROWS { Ok(()) } else { self.flush() }
    }

    fn flush(&mut self) -> Result<()> {
        if self.rows == 0 {
            return Ok(());
        }
        let mut group = self.file.next_row_group()?;
        for values in &mut self.columns {
            let Some(mut column) = group.next_column()? else { break };
            match values {
                Values::Text(values) => {
                    column.typed::<ByteArrayType>().write_batch(values, None, None)?;
                    values.clear();
                }
                Values::Whole(values) => {
                    column.typed::<Int64Type>().write_batch(values, None, None)?;
                    values.clear();
                }
                Values::Real(values, has) => {
                    column.typed::<DoubleType>().write_batch(values, Some(has.as_slice()), None)?;
                    values.clear();
                    has.clear();
                }
            }
            column.close()?;
        }
        group.close()?;
        self.rows = 0;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sim::report::testing::run;
    use ::parquet::file::reader::{FileReader as _, SerializedFileReader};
    use ::parquet::record::Field;

    #[test]
    fn what_is_written_reads_back_as_the_same() {
        let (_, report, mut record) = run(1);
        record.nodes[7].end_s = None;
        let run = Run { label: "über", report: &report, record: &record };
        for table in Table::ALL {
            let mut writer = Writer::new(table, Vec::new()).unwrap();
            // More than one row group of nodes.
            let times = if table == Table::Nodes { ROWS / record.nodes.len() + 1 } else { 2 };
            for _ in 0..times {
                writer.add(&run).unwrap();
            }
            let file = SerializedFileReader::new(bytes::Bytes::from(writer.finish().unwrap())).unwrap();
            let groups = if table == Table::Nodes { 2 } else { 1 };
            assert_eq!(file.metadata().num_row_groups(), groups, "{}", table.name());
            let mut read = file.get_row_iter(None).unwrap();
            for _ in 0..times {
                let check = |row: &[Value<'_>]| {
                    let found = read.next().unwrap().unwrap();
                    for ((value, column), (name, found)) in
                        row.iter().zip(table.columns()).zip(found.get_column_iter())
                    {
                        assert_eq!(column.0, name);
                        match (value, found) {
                            (Value::Text(text), Field::Str(found)) => assert_eq!(text, found),
                            (Value::Whole(whole), Field::ULong(found)) => assert_eq!(whole, found),
                            (Value::Real(real), Field::Null) => assert!(real.is_nan()),
                            (Value::Real(real), Field::Double(found)) => assert_eq!(real, found),
                            other => panic!("{name}: {other:?}"),
                        }
                    }
                    Ok::<_, ()>(())
                };
                table.rows(&run, check).unwrap();
            }
            assert!(read.next().is_none());
        }
    }
}
