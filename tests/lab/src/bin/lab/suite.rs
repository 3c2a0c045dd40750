//! `cargo lab test`: runs all tests, and counts them.

use std::env;
use std::io::{BufRead as _, BufReader};
use std::process::Stdio;
use std::thread;

use clap::Args;
use lab::{ARCH, Arch, Error, LANE, LANES, LONG, Lab, Tool, say, workspace};

#[derive(Args)]
pub struct Arguments {
    /// Run only nested tests whose names contain this text.
    filter: Option<String>,
    /// Run only the tests in the emulated machine.
    #[arg(long)]
    nested: bool,
    /// The architecture of the emulated machine. Of aarch64 only the tests in the machine run here;
    /// .ci/aarch64 runs the others.
    #[arg(long, value_enum, default_value_t)]
    arch: Arch,
    /// Repeat actions as often as a release needs, such as 50 removals of a device and 200 kills.
    #[arg(long)]
    long: bool,
}

/// The results of tests.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Count {
    passed: u64,
    failed: u64,
    skipped: u64,
    /// The number of emulated machines booted, and of those that stopped.
    machines: u64,
    faults: u64,
    /// The number of test programs that ended without a result.
    broken: u64,
}

/// Runs the tests and prints the results; returns whether all passed.
pub fn run(arguments: &Arguments) -> Result<bool, Error> {
    let arch = arguments.arch;
    Lab::set_up(arch)?.kernels(arch)?;
    // The tests of tests/dumps need them, and fetch nothing.
    Lab::lspci_dumps()?;
    let mut total = Count::default();
    if !arguments.nested && arguments.filter.is_none() && arch == Arch::X86_64 {
        say("running tests without the emulated machine");
        total = cargo_test(&["--workspace", "--quiet"], &[], show)?;
    }
    say("running tests in the emulated machine");
    let filter = arguments.filter.as_deref().unwrap_or_default();
    let nested = nested(filter, arguments)?;
    // The first part counted the tests of the second part as skipped.
    total.skipped = total.skipped.saturating_sub(nested.passed.saturating_add(nested.failed));
    total = total.and(nested);
    say(&total.in_words());
    Ok(total.is_success())
}

/// Runs the nested tests. With enough CPUs the lanes run at the same time, because an emulated
/// machine uses one CPU. The output of the first lane is shown at once, that of the others at the
/// end.
fn nested(filter: &str, options: &Arguments) -> Result<Count, Error> {
    let arguments = ["--package", "lab", "--test", "nested", "--", "--ignored", filter];
    let mut common = vec![(ARCH, options.arch.name().to_owned())];
    common.extend(options.long.then_some((LONG, "1".to_owned())));
    let cpus = thread::available_parallelism().map_or(1, usize::from);
    if cpus < LANES {
        return cargo_test(&arguments, &common, show);
    }
    thread::scope(|scope| {
        let variables = |lane: usize| [common.as_slice(), &[(LANE, lane.to_string())]].concat();
        let others: Vec<_> = (1..LANES)
            .map(|lane| {
                let variables = variables(lane);
                scope.spawn(move || {
                    let mut lines = Vec::new();
                    let count =
                        cargo_test(&arguments, &variables, |line| lines.push(line.to_owned()));
                    (count, lines)
                })
            })
            .collect();
        let mut total = cargo_test(&arguments, &variables(0), show)?;
        for other in others {
            let broken = |_| (Ok(Count { broken: 1, ..Count::default() }), Vec::new());
            let (count, lines) = other.join().unwrap_or_else(broken);
            lines.iter().for_each(|line| show(line));
            total = total.and(count?);
        }
        Ok(total)
    })
}

fn show(line: &str) {
    println!("{line}");
}

/// Runs `cargo test`, passes each line of its output to `show`, and counts the results.
fn cargo_test(
    arguments: &[&str],
    variables: &[(&str, String)],
    mut show: impl FnMut(&str),
) -> Result<Count, Error> {
    let cargo = env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let arguments =
        ["test", "--no-fail-fast"].iter().chain(arguments).filter(|word| !word.is_empty());
    let mut command = Tool::new(cargo).args(arguments).folder(&workspace()).into_command();
    command.envs(variables.iter().cloned());
    let failed = |error: std::io::Error| Error::Command {
        command: "cargo test".into(),
        why: error.to_string(),
    };
    let mut child = command.stdout(Stdio::piped()).spawn().map_err(failed)?;
    let mut count = Count::default();
    for line in child
        .stdout
        .take()
        .into_iter()
        .flat_map(|out| BufReader::new(out).lines())
        .map_while(Result::ok)
    {
        show(&line);
        count = count.and(counted(&line));
    }
    let ended = child.wait().map_err(failed)?.success();
    // cargo fails if tests failed. Without a failed test, a build failed or a test program crashed.
    let broken = u64::from(!ended && count.failed == 0);
    Ok(Count { broken, ..count })
}

/// The results on a line of a test program: libtest prints `test result: ok. 3 passed; 0 failed;
/// ...`.
fn counted(line: &str) -> Count {
    if let Some(result) = line.strip_prefix("test result:") {
        let (passed, failed) = (number_before(result, "passed"), number_before(result, "failed"));
        return Count {
            passed,
            failed,
            skipped: number_before(result, "ignored"),
            ..Count::default()
        };
    }
    match line.strip_prefix("nested machines:") {
        Some(tally) => {
            let (machines, faults) =
                (number_before(tally, "booted"), number_before(tally, "replaced"));
            Count { machines, faults, ..Count::default() }
        }
        None => Count::default(),
    }
}

fn number_before(text: &str, word: &str) -> u64 {
    let words: Vec<&str> =
        text.split([' ', ';', '.', ',']).filter(|word| !word.is_empty()).collect();
    let found = words.windows(2).find(|pair| pair.last() == Some(&word));
    found.and_then(|pair| pair.first()?.parse().ok()).unwrap_or_default()
}

impl Count {
    fn and(self, other: Self) -> Self {
        Self {
            passed: self.passed.saturating_add(other.passed),
            failed: self.failed.saturating_add(other.failed),
            skipped: self.skipped.saturating_add(other.skipped),
            machines: self.machines.saturating_add(other.machines),
            faults: self.faults.saturating_add(other.faults),
            broken: self.broken.saturating_add(other.broken),
        }
    }

    fn is_success(self) -> bool {
        self.failed == 0 && self.broken == 0 && self.passed > 0
    }

    fn in_words(self) -> String {
        let Self { passed, failed, skipped, machines, faults, broken } = self;
        let verdict = if self.is_success() { "success" } else { "FAILURE" };
        let broken = match broken {
            0 => String::new(),
            _ => format!(", {broken} test programs that did not build or ended without a result"),
        };
        format!(
            "{verdict}: {passed} tests passed, {failed} failed, {skipped} skipped{broken}; \
             {machines} emulated machines booted, {faults} of them stopped and were replaced"
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_the_results_of_a_test_program() {
        let line = "test result: FAILED. 12 passed; 3 failed; 1 ignored; 0 measured; 0 filtered out; finished in 0.1s";
        assert_eq!(counted(line), Count { passed: 12, failed: 3, skipped: 1, ..Count::default() });
    }

    #[test]
    fn counts_machines() {
        let line = "nested machines: 7 booted, 1 replaced";
        assert_eq!(counted(line), Count { machines: 7, faults: 1, ..Count::default() });
    }

    #[test]
    fn ignores_other_lines() {
        assert_eq!(counted("test pool::tests::x ... ok"), Count::default());
    }

    #[test]
    fn succeeds_only_if_a_test_passed_and_none_failed() {
        assert!(!Count::default().is_success());
        assert!(Count { passed: 1, ..Count::default() }.is_success());
        assert!(!Count { passed: 1, broken: 1, ..Count::default() }.is_success());
    }
}
