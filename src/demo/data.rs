//! US airports and routes, which the program carries with it, and how they lie in tables.

use super::log::{Committed, Log};
use crate::ops::{BeginOptions, Operations};
use crate::schema::TableSpec;
use crate::{Error, Result};
use atlas_kvs::{Cell, TableRef};
use bytes::Bytes;

const AIRPORTS_CSV: &str = include_str!("../../examples/data/airports.csv");
const ROUTES_CSV: &str = include_str!("../../examples/data/flights-airport.csv");

/// The column of a route that tasks change.
pub(super) const FLIGHTS: &str = "flights";

/// Rows of one transaction of loading.
const BATCH_ROWS: usize = 500;

pub(super) fn airports() -> TableRef {
    TableRef::new("demo.airports").expect("the name is well formed")
}

pub(super) fn routes() -> TableRef {
    TableRef::new("demo.routes").expect("the name is well formed")
}

/// A route and its flights.
#[derive(Clone, Debug)]
pub(super) struct Route {
    pub(super) row: String,
    pub(super) flights: i64,
}

/// Cells of one row.
type Row = Vec<(Cell, Bytes)>;

fn parse_airports() -> Result<Vec<Row>> {
    let mut reader = csv::Reader::from_reader(AIRPORTS_CSV.as_bytes());
    let names = reader.headers().map_err(own_data)?.clone();
    let mut rows = Vec::new();
    for record in reader.records() {
        let record = record.map_err(own_data)?;
        let row = &record[0];
        let cells = names.iter().zip(&record).skip(1);
        rows.push(cells.map(|(name, value)| (Cell::copy_from(row, name), copy(value))).collect());
    }
    Ok(rows)
}

/// Every route, the busiest first.
pub(super) fn parse_routes() -> Result<Vec<Route>> {
    let mut reader = csv::Reader::from_reader(ROUTES_CSV.as_bytes());
    let mut routes = Vec::new();
    for record in reader.deserialize() {
        let (origin, destination, flights): (String, String, i64) = record.map_err(own_data)?;
        routes.push(Route { row: format!("{origin}-{destination}"), flights });
    }
    routes.sort_by_key(|route| std::cmp::Reverse(route.flights));
    Ok(routes)
}

fn own_data(error: csv::Error) -> Error {
    Error::corrupt("the data of the demo", error.to_string())
}

fn copy(text: &str) -> Bytes {
    Bytes::copy_from_slice(text.as_bytes())
}

/// The cell of a route's flights.
pub(super) fn flights_cell(row: &str) -> Cell {
    Cell::copy_from(row, FLIGHTS)
}

/// Reads a number of flights.
pub(super) fn parse_flights(cell: &Cell, value: &Bytes) -> Result<i64> {
    let number = std::str::from_utf8(value).ok().and_then(|text| text.parse().ok());
    number.ok_or_else(|| {
        Error::corrupt(format!("{}:{cell}", routes()), format!("'{}' is no number of flights", value.escape_ascii()))
    })
}

/// How many flights a cell stands for.
pub(super) fn flights_in(table: &TableRef, cell: &Cell, value: &Bytes) -> Result<i64> {
    if *table == routes() && cell.column == FLIGHTS.as_bytes() { parse_flights(cell, value) } else { Ok(0) }
}

/// Makes both tables and loads them through transactions. Answers the number of rows.
pub(super) async fn load(operations: &dyn Operations, log: &Log) -> Result<u64> {
    for table in [airports(), routes()] {
        operations.create_table(&table, &TableSpec::default()).await?;
    }
    let airport_rows = parse_airports()?;
    let route_rows = parse_routes()?;
    let rows = airport_rows.len() + route_rows.len();
    for batch in airport_rows.chunks(BATCH_ROWS) {
        let writes = batch.iter().flatten().cloned().collect();
        write(operations, log, airports(), writes, 0).await?;
    }
    for batch in route_rows.chunks(BATCH_ROWS) {
        let flights = batch.iter().map(|route| route.flights).sum();
        let cells = batch.iter().flat_map(|route| {
            let (origin, destination) = route.row.split_once('-').expect("rows of routes are made with a dash");
            [
                (Cell::copy_from(&route.row, "origin"), copy(origin)),
                (Cell::copy_from(&route.row, "destination"), copy(destination)),
                (flights_cell(&route.row), copy(&route.flights.to_string())),
            ]
        });
        write(operations, log, routes(), cells.collect(), flights).await?;
    }
    Ok(rows as u64)
}

/// Nobody else writes yet, so there is nothing to do again.
async fn write(operations: &dyn Operations, log: &Log, table: TableRef, writes: Row, flights: i64) -> Result<()> {
    let transaction = operations.begin_transaction(BeginOptions::default()).await?;
    let cells = writes.iter().map(|(cell, value)| (cell.clone(), Some(value.clone()))).collect();
    transaction.write(&table, cells).await?;
    let start_ts = transaction.start_ts();
    let commit_ts = transaction.commit().await?.ok_or_else(|| super::work::no_timestamp(start_ts))?;
    log.add(Committed { commit_ts, table, writes, flights, is_booking: false });
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn the_data_is_whole_and_its_rows_differ() {
        let airports = parse_airports().expect("airports parse");
        let routes = parse_routes().expect("routes parse");
        assert_eq!((airports.len(), routes.len()), (3376, 5366));
        assert_eq!(routes.iter().map(|route| &route.row).collect::<BTreeSet<_>>().len(), routes.len());
        assert_eq!(airports.iter().map(|row| &row[0].0.row).collect::<BTreeSet<_>>().len(), airports.len());
        assert!(routes[0].flights >= routes[1].flights);
    }
}
