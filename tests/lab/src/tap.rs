//! The output of the kernel's own tests, in TAP (Documentation/dev-tools/ktap.rst).

/// How a case ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It passed.
    Passed,
    /// It failed.
    Failed,
    /// It did not apply.
    Skipped,
}

/// The results of a program.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Results {
    /// The number of cases that the program announced.
    pub planned: usize,
    /// Each case that ended: its name, how it ended, and the rest of its line.
    pub cases: Vec<(String, Outcome, String)>,
}

impl Results {
    /// Reads the output of a program, in which other lines may be.
    #[must_use]
    pub fn of(output: &str) -> Self {
        let planned = output.lines().find_map(|line| line.strip_prefix("1..")?.parse().ok());
        let cases = output.lines().filter_map(case).collect();
        Self { planned: planned.unwrap_or_default(), cases }
    }

    /// The names of the cases with an outcome.
    pub fn with(&self, outcome: Outcome) -> impl Iterator<Item = &str> {
        let with = self.cases.iter().filter(move |(_, found, _)| *found == outcome);
        with.map(|(name, ..)| name.as_str())
    }

    /// Whether each case that was announced ended.
    #[must_use]
    pub fn is_complete(&self) -> bool {
        self.planned > 0 && self.cases.len() == self.planned
    }
}

/// A line such as `ok 12 iommufd_ioas.mock_domain.destroy # SKIP why`.
fn case(line: &str) -> Option<(String, Outcome, String)> {
    let (failed, line) = match line.strip_prefix("not ") {
        Some(line) => (true, line),
        None => (false, line),
    };
    let (number, rest) = line.strip_prefix("ok ")?.split_once(' ')?;
    number.parse::<u32>().ok()?;
    let (name, rest) = rest.split_once(' ').unwrap_or((rest, ""));
    let outcome = match rest.starts_with("# SKIP") {
        _ if failed => Outcome::Failed,
        true => Outcome::Skipped,
        false => Outcome::Passed,
    };
    Some((name.to_owned(), outcome, rest.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    const OUTPUT: &str = "TAP version 13\n1..4\n# RUN a.b ...\nok 1 a.b\nok it is\n\
                          not ok 2 a.c\nok 3 a.d # SKIP no huge pages\n";

    #[test]
    fn reads_the_cases_between_other_lines() {
        let results = Results::of(OUTPUT);
        let with = |outcome| results.with(outcome).collect::<Vec<_>>();
        assert_eq!(with(Outcome::Passed), ["a.b"]);
        assert_eq!(with(Outcome::Failed), ["a.c"]);
        assert_eq!(with(Outcome::Skipped), ["a.d"]);
        assert_eq!(results.cases[2].2, "# SKIP no huge pages");
    }

    #[test]
    fn a_program_that_ended_early_is_not_complete() {
        assert!(!Results::of(OUTPUT).is_complete());
        assert!(Results::of(&format!("{OUTPUT}ok 4 a.e\n")).is_complete());
        assert!(!Results::of("").is_complete());
    }
}
