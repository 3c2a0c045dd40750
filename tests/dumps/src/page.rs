//! docs/config-space.md: a table of what guests see.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::{fs, io};

use vfio_passthrough::PciAddress;

use crate::class;
use crate::difference::{Difference, between};
use crate::dump::{self, Function};
use crate::guest::assign;
use crate::lists::u16_at;

/// What a guest sees of a function.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Sight {
    /// Its config space, with these differences.
    Shown(Difference),
    /// Nothing: the library refuses it with this error, here without the address.
    Refused(String),
}

/// The sight of a function.
pub fn sight(function: &Function) -> Sight {
    match assign(function) {
        Ok(assigned) => Sight::Shown(between(&function.config, &assigned.config())),
        Err(error) => {
            let (text, address) = (error.to_string(), format!("{}: ", function.address));
            Sight::Refused(text.strip_prefix(&address).unwrap_or(&text).to_owned())
        }
    }
}

/// The files of a folder, in the order of their names, with their functions.
///
/// # Errors
///
/// A file cannot be read.
pub fn read(folder: &Path) -> io::Result<Vec<(String, Vec<Function>)>> {
    let mut files: Vec<PathBuf> =
        fs::read_dir(folder)?.map(|entry| entry.map(|it| it.path())).collect::<Result<_, _>>()?;
    files.sort();
    files.iter().map(|file| read_file(file)).collect()
}

/// The name of a file, and its functions.
///
/// # Errors
///
/// The file cannot be read.
pub fn read_file(file: &Path) -> io::Result<(String, Vec<Function>)> {
    let name = file.file_name().unwrap_or_default().to_string_lossy().into_owned();
    Ok((name, dump::parse(&fs::read_to_string(file)?)))
}

/// A row of the table, without its first column.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
struct Row {
    sight: Sight,
    class: String,
}

/// The page: its text, with the counts and the table in it.
pub fn page(files: &[(String, Vec<Function>)]) -> String {
    let sights = sights(files);
    let count = |(_, functions): &(String, Vec<Function>)| functions.len();
    let total = files.iter().map(count).sum::<usize>();
    let is_refused = |(row, _): &(&Row, &Vec<_>)| matches!(row.sight, Sight::Refused(_));
    let refused = sights.iter().filter(is_refused).map(|(_, found)| found.len()).sum::<usize>();
    include_str!("page.md")
        .replace("{files}", &files.len().to_string())
        .replace("{functions}", &total.to_string())
        .replace("{shown}", &(total - refused).to_string())
        .replace("{refused}", &refused.to_string())
        .replace("{table}", table(&sights).trim_end())
}

/// The table alone.
pub fn table_of(files: &[(String, Vec<Function>)]) -> String {
    table(&sights(files))
}

/// The functions of each row: the name of the file, and the address.
type Sights<'a> = BTreeMap<Row, Vec<(&'a str, PciAddress)>>;

fn sights(files: &[(String, Vec<Function>)]) -> Sights<'_> {
    let mut rows = Sights::new();
    for (name, functions) in files {
        for function in functions {
            let class = class::name(u16_at(&function.config, 0x0a));
            let row = Row { sight: sight(function), class };
            rows.entry(row).or_default().push((name, function.address));
        }
    }
    rows
}

fn table(sights: &Sights<'_>) -> String {
    let mut text = String::from("| class | hidden | changed | functions |\n|---|---|---|---|\n");
    for (Row { sight, class }, functions) in sights {
        let (hidden, changed) = cells(sight);
        // Nothing fails in memory.
        let _ = writeln!(text, "| {class} | {hidden} | {changed} | {} |", places(functions));
    }
    text
}

fn cells(sight: &Sight) -> (String, String) {
    match sight {
        Sight::Refused(reason) => (format!("refused: {reason}"), "-".to_owned()),
        Sight::Shown(Difference { hidden, changed, faults }) => {
            let faults = faults.iter().map(|(at, old, new)| {
                format!("FAULT: {at:#x} is {new:#04x}, the device's is {old:#04x}")
            });
            let changed = changed.iter().map(|name| (*name).to_owned()).chain(faults);
            (counted(hidden), or_dash(&changed.collect::<Vec<_>>()))
        }
    }
}

/// The names in their order; one that is there again has its count.
fn counted(names: &[String]) -> String {
    let mut found: Vec<(&str, usize)> = Vec::new();
    for name in names {
        match found.iter_mut().find(|(known, _)| known == name) {
            Some((_, count)) => *count += 1,
            None => found.push((name, 1)),
        }
    }
    let text = |(name, count): &(&str, usize)| match count {
        1 => (*name).to_owned(),
        _ => format!("{count} {name}"),
    };
    or_dash(&found.iter().map(text).collect::<Vec<_>>())
}

fn or_dash(names: &[String]) -> String {
    if names.is_empty() { "-".to_owned() } else { names.join(", ") }
}

/// The functions, each file with its addresses.
fn places(functions: &[(&str, PciAddress)]) -> String {
    let mut files: Vec<(&str, Vec<String>)> = Vec::new();
    for (file, address) in functions {
        let address = address.to_string();
        let address = address.strip_prefix("0000:").unwrap_or(&address).to_owned();
        match files.last_mut().filter(|(last, _)| last == file) {
            Some((_, addresses)) => addresses.push(address),
            None => files.push((file, vec![address])),
        }
    }
    let text = |(file, addresses): &(&str, Vec<String>)| format!("{file} {}", addresses.join(" "));
    files.iter().map(text).collect::<Vec<_>>().join("; ")
}
