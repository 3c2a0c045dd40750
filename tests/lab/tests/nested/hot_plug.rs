//! Devices that come and go while the guest runs.

use lab::{Error, Guest, L1, place, sha256};

use crate::Test;
use crate::support::{assigned, boot, hashes};

pub const TESTS: &[Test] = &[("hot-plug: an NVMe comes, works and leaves", comes_and_leaves)];

const SOCKET: &str = "/tmp/vm.sock";
const INIT: &str = "\"report\":\"init\"";
const HASH: &str = "\"report\":\"hash\"";

fn command(words: &[&str]) -> Vec<String> {
    [place::VMM].iter().chain(words).map(|word| (*word).to_owned()).collect()
}

fn comes_and_leaves(l1: &mut L1) -> Result<(), Error> {
    let device = assigned(l1, 0)?;
    let expected = sha256(&l1.image(0)?[..1 << 20]);
    let guest = Guest::new("disks:1,hash:1M,pause:500")
        .arguments(["--control", SOCKET])
        .run_at(INIT, command(&["add", SOCKET, "--vfio", &device]))
        .run_at(HASH, command(&["remove", SOCKET, &device]));
    let outcome = boot(l1, &guest)?;
    let [added, removed] = &outcome.finished.sightings[..] else { panic!("{}", outcome.details()) };
    assert!(added.said.contains(&format!("{device} is 0000:00:01.0 in the guest")), "{added:?}");
    assert!(removed.said.contains(&format!("{device} is free")), "{removed:?}");
    assert_eq!(hashes(&outcome), [expected], "{}", outcome.details());
    Ok(())
}
