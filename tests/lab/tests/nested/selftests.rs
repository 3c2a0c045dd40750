//! The kernel's own tests of iommufd, with its mock IOMMU: the oracle for rules that no device of the
//! lab can show. They run only in the long form, on the small 7.3 kernel.

use lab::protocol::{Program, Request};
use lab::tap::{Outcome, Results};
use lab::{Error, L1, Lab, SELFTESTS};

use crate::Test;
use crate::with_host::{HOST, share};

/// For a kernel with `CONFIG_IOMMUFD_TEST`, with the host's root.
pub const TESTS: &[Test] = &[("iommufd: the kernel passes its own tests", pass)];

/// The ends of the names of tests that fail on every machine: `iommufd_test_dmabuf_get` of 7.3.4
/// returns 0 instead of the descriptor that it made.
const KNOWN: [&str; 2] = [".dmabuf_simple", ".dmabuf_revoke"];

fn pass(l1: &mut L1) -> Result<(), Error> {
    let folder = Lab::selftests()?;
    share(l1)?;
    // Tests of huge pages take some.
    l1.perform(&Request::Write {
        path: "/proc/sys/vm/nr_hugepages".into(),
        contents: "64".into(),
    })?;
    let mut unknown = Vec::new();
    for program in SELFTESTS {
        let path = format!("{HOST}{}", folder.join(program).display());
        let run = l1.run(Program { arguments: vec![path], ..Program::default() })?;
        let results = Results::of(&run.stdout);
        let seconds = run.finished.elapsed_ns / 1_000_000_000;
        println!("{program}: {} cases in {seconds} s", results.cases.len());
        for (name, outcome, rest) in &results.cases {
            if *outcome != Outcome::Passed {
                println!("  {outcome:?}: {name} {rest}");
            }
        }
        assert!(results.is_complete(), "{}\n{}", run.stdout, run.stderr);
        let failed = results.with(Outcome::Failed).map(str::to_owned);
        unknown.extend(failed.filter(|name| !KNOWN.iter().any(|known| name.ends_with(known))));
    }
    assert_eq!(unknown, [""; 0]);
    Ok(())
}
