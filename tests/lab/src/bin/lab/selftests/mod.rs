//! `cargo lab selftests`: the kernel's own tests of VFIO run on real kernels in L1, and on the
//! model. Each case has to end as docs/selftests.md states.

mod places;
mod table;

use std::fs;

use clap::Args;
use lab::tap::Outcome;
use lab::{Error, Lab, say, workspace};

use places::{Place, Ran};
use table::Table;

/// The table of what is expected.
const TABLE: &str = "docs/selftests.md";

#[derive(Args)]
pub struct Arguments {
    /// Where to run the tests [default: everywhere].
    #[arg(value_enum)]
    places: Vec<Place>,
    /// On real kernels, leave out the tests that use the device's DMA, which take most of the time.
    #[arg(long)]
    short: bool,
    /// Write how the cases end into docs/selftests.md.
    #[arg(long)]
    record: bool,
}

/// Runs the tests and compares; returns whether each case ended as expected.
pub fn run(arguments: &Arguments) -> Result<bool, Error> {
    let folder = Lab::vfio_selftests()?;
    let mut all = Vec::new();
    for place in Place::chosen(&arguments.places) {
        let ran = place.run(&folder, arguments.short)?;
        say(&summary(place, &ran));
        all.push((place, ran));
    }
    let differences = compare(&all, arguments.record)?;
    differences.iter().for_each(|difference| say(difference));
    let verdict = match differences.len() {
        0 => format!("each case ended as {TABLE} states"),
        count => format!("{count} differences from {TABLE}"),
    };
    say(&verdict);
    Ok(differences.is_empty())
}

/// Compares with the table, which is written before if `record` is set.
fn compare(all: &[(Place, Vec<Ran>)], record: bool) -> Result<Vec<String>, Error> {
    let path = workspace().join(TABLE);
    let text = fs::read_to_string(&path).map_err(Error::file("read", &path))?;
    let mut table = Table::of(&text);
    if record {
        all.iter().for_each(|(place, ran)| table.record(*place, ran));
        fs::write(&path, table.to_string()).map_err(Error::file("write", &path))?;
    }
    let differences = all.iter().flat_map(|(place, ran)| table.differences(*place, ran));
    Ok(differences.chain(table.unexplained()).collect())
}

/// Each program with how many of its cases passed.
fn summary(place: Place, ran: &[Ran]) -> String {
    let line = |Ran { program, results, seconds }: &Ran| {
        let passed = results.with(Outcome::Passed).count();
        match results.planned {
            0 => format!("\n  {program}: does not apply to the device"),
            planned => format!("\n  {program}: {passed} of {planned} in {seconds} s"),
        }
    };
    let lines: String = ran.iter().map(line).collect();
    format!("on {}, passed:{lines}", place.name())
}
