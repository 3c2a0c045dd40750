//! The table of docs/selftests.md: a section for each program, a row for each case.

use std::fmt;

use lab::tap::Outcome;

use super::places::{Place, Ran};

/// The cell of a case that did not run.
const NOT_RUN: &str = "-";

/// The document: text, and a section for each program.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Table {
    text: Vec<String>,
    sections: Vec<Section>,
}

/// The cases of a program.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Section {
    program: String,
    /// What is between the heading and the table.
    text: Vec<String>,
    rows: Vec<Row>,
}

/// A case.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Row {
    case: String,
    /// How it ends in each place, in the order of [`Place::ALL`].
    ends: Vec<String>,
    /// Why the model does not end as the kernel.
    why: String,
}

impl Table {
    /// Reads the document.
    pub fn of(document: &str) -> Self {
        let mut table = Self::default();
        for line in document.lines() {
            match (line.strip_prefix("## "), table.sections.last_mut()) {
                (Some(program), _) => table.add(program),
                (None, None) => table.text.push(line.to_owned()),
                (None, Some(section)) => section.read(line),
            }
        }
        table
    }

    fn add(&mut self, program: &str) {
        self.sections.push(Section { program: program.to_owned(), ..Section::default() });
    }

    /// The cases that did not end as the table states.
    pub fn differences(&self, place: Place, ran: &[Ran]) -> Vec<String> {
        let none = Section::default();
        let section = |ran: &Ran| self.sections.iter().find(|own| own.program == ran.program);
        ran.iter().flat_map(|ran| section(ran).unwrap_or(&none).differences(place, ran)).collect()
    }

    /// The rows in which the model does not end as the kernel, and which have no reason.
    pub fn unexplained(&self) -> Vec<String> {
        let rows = self.sections.iter().flat_map(|section| &section.rows);
        let unexplained = rows.filter(|row| row.differs() && row.why.is_empty());
        unexplained.map(|row| format!("{}: the table has no reason", row.case)).collect()
    }

    /// Writes how the cases ended into their rows.
    pub fn record(&mut self, place: Place, ran: &[Ran]) {
        for ran in ran {
            if !self.sections.iter().any(|section| section.program == ran.program) {
                self.add(ran.program);
            }
            let own = self.sections.iter_mut().filter(|section| section.program == ran.program);
            own.for_each(|section| section.record(place, ran));
        }
    }
}

impl Section {
    fn read(&mut self, line: &str) {
        match Row::of(line) {
            Some(row) => self.rows.push(row),
            None if line.is_empty() || line.starts_with('|') => {}
            None => self.text.push(line.to_owned()),
        }
    }

    fn differences(&self, place: Place, ran: &Ran) -> Vec<String> {
        let found = |case: &str| self.rows.iter().find(|row| row.case == case);
        let changed = ends(ran).filter_map(|(case, end)| {
            let stated = found(case).map_or("not in the table", |row| row.end(place));
            let is_other = stated != end;
            is_other.then(|| format!("{case} on {}: {end}, and not {stated}", place.name()))
        });
        let ran = |row: &Row| ends(ran).any(|(case, _)| case == row.case);
        let stated = self.rows.iter().filter(|row| row.end(place) != NOT_RUN);
        let lost = stated.filter(|row| !ran(row));
        changed.chain(lost.map(|row| format!("{} did not run", row.case))).collect()
    }

    fn record(&mut self, place: Place, ran: &Ran) {
        self.rows.iter_mut().for_each(|row| row.set(place, NOT_RUN));
        for (case, end) in ends(ran) {
            if !self.rows.iter().any(|row| row.case == case) {
                self.rows.push(Row::new(case));
            }
            let own = self.rows.iter_mut().filter(|row| row.case == case);
            own.for_each(|row| row.set(place, end));
        }
    }
}

impl Row {
    fn new(case: &str) -> Self {
        let ends = Place::ALL.map(|_| NOT_RUN.to_owned()).to_vec();
        Self { case: case.to_owned(), ends, why: String::new() }
    }

    /// Reads a line of a table that is neither its head nor the line below it.
    fn of(line: &str) -> Option<Self> {
        let cells: Vec<&str> = line.strip_prefix('|')?.split('|').map(str::trim).collect();
        let [case, ends @ .., why, ""] = &cells[..] else { return None };
        let case = case.strip_prefix('`')?.strip_suffix('`')?;
        let ends: Vec<String> = ends.iter().map(|end| (*end).to_owned()).collect();
        (ends.len() == Place::ALL.len()).then(|| Self {
            case: case.to_owned(),
            ends,
            why: (*why).to_owned(),
        })
    }

    fn end(&self, place: Place) -> &str {
        self.ends.get(place as usize).map_or(NOT_RUN, String::as_str)
    }

    fn set(&mut self, place: Place, end: &str) {
        if let Some(own) = self.ends.get_mut(place as usize) {
            end.clone_into(own);
        }
    }

    /// Whether the model of a kernel does not end as the kernel.
    fn differs(&self) -> bool {
        let pairs = [(Place::Linux612, Place::Model612), (Place::Linux73, Place::Model73)];
        pairs.into_iter().any(|(kernel, model)| self.end(kernel) != self.end(model))
    }
}

/// How the cases of a program ended, as the table has it.
fn ends(ran: &Ran) -> impl Iterator<Item = (&str, &'static str)> {
    ran.results.cases.iter().map(|(case, outcome, _)| {
        let end = match outcome {
            Outcome::Passed => "ok",
            Outcome::Failed => "fail",
            Outcome::Skipped => "skip",
        };
        (case.as_str(), end)
    })
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.text.iter().try_for_each(|line| writeln!(f, "{line}"))?;
        let mut sections = self.sections.iter().enumerate();
        sections.try_for_each(|(number, section)| {
            // The text before the first heading ends with an empty line of its own.
            let space = if number == 0 { "" } else { "\n" };
            write!(f, "{space}{section}")
        })
    }
}

impl fmt::Display for Section {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "## {}\n", self.program)?;
        self.text.iter().try_for_each(|line| writeln!(f, "{line}"))?;
        if !self.text.is_empty() {
            writeln!(f)?;
        }
        let names = Place::ALL.map(Place::name).join(" | ");
        writeln!(f, "| case | {names} | why the model differs |")?;
        writeln!(f, "|---|{}---|", "---|".repeat(Place::ALL.len()))?;
        self.rows.iter().try_for_each(|row| writeln!(f, "{row}"))
    }
}

impl fmt::Display for Row {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let line = format!("| `{}` | {} | {}", self.case, self.ends.join(" | "), self.why);
        write!(f, "{} |", line.trim_end())
    }
}

#[cfg(test)]
mod tests {
    use lab::tap::Results;

    use super::*;

    const DOCUMENT: &str = "\
# Tests

They run.

## first

| case | 6.12 | 7.3 | model of 6.12 | model of 7.3 | why the model differs |
|---|---|---|---|---|---|
| `a.b` | ok | ok | skip | ok | no pages |
| `a.c` | ok | fail | ok | fail | |

## second

It needs a device.

| case | 6.12 | 7.3 | model of 6.12 | model of 7.3 | why the model differs |
|---|---|---|---|---|---|
| `d.e` | ok | ok | - | - | no engine |
";

    fn ran(program: &'static str, output: &str) -> Vec<Ran> {
        vec![Ran { program, results: Results::of(output), seconds: 0 }]
    }

    #[test]
    fn a_document_is_written_as_it_is_read() {
        assert_eq!(Table::of(DOCUMENT).to_string(), DOCUMENT);
    }

    #[test]
    fn reports_each_case_that_changed() {
        let table = Table::of(DOCUMENT);
        let place = Place::Linux612;
        let same = ran("first", "1..2\nok 1 a.b\nok 2 a.c\n");
        assert_eq!(table.differences(place, &same), [""; 0]);
        let other = ran("first", "1..2\nnot ok 1 a.b\nok 2 a.x\n");
        assert_eq!(
            table.differences(place, &other),
            [
                "a.b on 6.12: fail, and not ok",
                "a.x on 6.12: ok, and not not in the table",
                "a.c did not run"
            ]
        );
        assert_eq!(table.differences(place, &ran("second", "")), ["d.e did not run"]);
        assert_eq!(table.differences(Place::Model73, &ran("second", "")), [""; 0]);
    }

    #[test]
    fn a_difference_of_the_model_needs_a_reason() {
        let text = DOCUMENT.replace("no pages", "");
        assert_eq!(Table::of(&text).unexplained(), ["a.b: the table has no reason"]);
        assert_eq!(Table::of(DOCUMENT).unexplained(), [""; 0]);
    }

    #[test]
    fn records_old_and_new_cases() {
        let mut table = Table::of(DOCUMENT);
        table.record(Place::Model73, &ran("first", "1..2\nok 1 a.b\nok 2 a.x # SKIP\n"));
        table.record(Place::Model73, &ran("third", "1..1\nok 1 f.g\n"));
        let text = table.to_string();
        for row in [
            "| `a.b` | ok | ok | skip | ok | no pages |\n",
            "| `a.c` | ok | fail | ok | - | |\n",
            "| `a.x` | - | - | - | skip | |\n",
            "| `f.g` | - | - | - | ok | |\n",
        ] {
            assert!(text.contains(row), "{text}");
        }
        assert_eq!(Table::of(&text), table);
    }
}
