//! The kernel's own tests of iommufd, with its mock IOMMU: the oracle for rules that no device of the
//! lab can show. They run only in the long form, on the small 7.3 kernel.

use lab::protocol::{Program, Request};
use lab::{Error, L1, Lab, SELFTESTS};

use crate::Test;

/// For a kernel with `CONFIG_IOMMUFD_TEST`, with the host's root.
pub const TESTS: &[Test] = &[("iommufd: the kernel passes its own tests", pass)];

const HOST: &str = "/host";

/// The ends of the names of tests that fail on every machine: `iommufd_test_dmabuf_get` of 7.3.4
/// returns 0 instead of the descriptor that it made.
const KNOWN: [&str; 2] = [".dmabuf_simple", ".dmabuf_revoke"];

/// The results of a program, in TAP.
#[derive(Debug, Default, PartialEq)]
struct Results {
    planned: usize,
    passed: usize,
    skipped: Vec<String>,
    failed: Vec<String>,
}

impl Results {
    fn of(output: &str) -> Self {
        let mut results = Self::default();
        for line in output.lines() {
            if let Some(number) = line.strip_prefix("1..") {
                results.planned = number.parse().unwrap_or_default();
            }
            match line.split_once(' ') {
                Some(("ok", rest)) if rest.contains("# SKIP") => {
                    results.skipped.push(rest.to_owned());
                }
                Some(("ok", _)) => results.passed += 1,
                Some(("not", rest)) if rest.starts_with("ok ") => {
                    results.failed.push(name(rest).to_owned());
                }
                _ => {}
            }
        }
        results
    }
}

/// The name of a test in `ok 12 iommufd_ioas.mock_domain.ioas_area_destroy`.
fn name(line: &str) -> &str {
    line.splitn(3, ' ').last().unwrap_or_default()
}

fn pass(l1: &mut L1) -> Result<(), Error> {
    let folder = Lab::selftests()?;
    if l1.read(&format!("{HOST}/bin")).is_err() {
        l1.perform(&Request::Share { at: HOST.into() })?;
    }
    // Tests of huge pages take some.
    l1.perform(&Request::Write {
        path: "/proc/sys/vm/nr_hugepages".into(),
        contents: "64".into(),
    })?;
    let mut unknown = Vec::new();
    for program in SELFTESTS {
        let path = format!("{HOST}{}", folder.join(program).display());
        let run = l1.run(Program { arguments: vec![path], ..Program::default() })?;
        let Results { planned, passed, skipped, failed } = Results::of(&run.stdout);
        let (seconds, counts) =
            (run.finished.elapsed_ns / 1_000_000_000, [failed.len(), skipped.len()]);
        println!("{program}: {passed} passed, {counts:?} failed and skipped, in {seconds} s");
        skipped.iter().for_each(|line| println!("  skipped: {line}"));
        failed.iter().for_each(|line| println!("  failed: {line}"));
        let all = passed + skipped.len() + failed.len();
        assert!(passed > 0 && all == planned, "{}\n{}", run.stdout, run.stderr);
        unknown.extend(failed.into_iter().filter(|name| !KNOWN.iter().any(|k| name.ends_with(k))));
    }
    assert_eq!(unknown, [""; 0]);
    Ok(())
}
