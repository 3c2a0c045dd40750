//! Guests with much RAM, and with huge pages.

use guest::Report;
use lab::protocol::Request;
use lab::{Error, Guest, L1, sha256};

use crate::Test;
use crate::support::{assert_refused, assigned, boot, counter, hashes};

/// On a machine of 6 GiB.
pub const TESTS: &[Test] = &[
    // First, while there is a piece of so much.
    ("big: a reserved page of 1G, and a device", page_of_1g),
    ("big: RAM beyond 4 GiB", beyond_4_gib),
];

/// On a machine of 2 GiB.
pub const HUGE_PAGES: &[Test] = &[("big: reserved pages of 2M, and a device", pages_of_2m)];

const HASHED: usize = 4 << 20;
const INIT: &str = "\"report\":\"init\"";

/// Nothing of it is touched but what the guest's kernel touches.
fn beyond_4_gib(l1: &mut L1) -> Result<(), Error> {
    const ROLLUP: &str = "/proc/{pid}/smaps_rollup";
    let guest = Guest::new("pause:1").memory("5G").look_at(INIT, &[ROLLUP]);
    let outcome = boot(l1, &guest)?;
    let Some(Report::Init { memory_kib, .. }) = outcome.reports.first() else {
        panic!("no first report\n{}", outcome.account());
    };
    assert!(*memory_kib > 4700 << 10, "{}", outcome.account());
    assert_eq!(counter(&outcome, "/ram_regions"), 2, "{}", outcome.account());
    let rollup = &outcome.finished.sightings[0].files[ROLLUP];
    let none = rollup.lines().any(|line| line.split_whitespace().eq(["AnonHugePages:", "0", "kB"]));
    assert!(rollup.contains("AnonHugePages:") && !none, "no huge pages of small ones\n{rollup}");
    Ok(())
}

fn folder(kib: u64) -> String {
    format!("/sys/kernel/mm/hugepages/hugepages-{kib}kB")
}

fn reserve(l1: &mut L1, kib: u64, pages: u64) -> Result<(), Error> {
    let path = format!("{}/nr_hugepages", folder(kib));
    l1.tell(&Request::Write { path: path.clone(), contents: pages.to_string() })?;
    assert_eq!(l1.read(&path)?.trim(), pages.to_string(), "pages of {kib} KiB");
    Ok(())
}

/// Without enough of them, the message has the command that is then obeyed.
fn pages_of_2m(l1: &mut L1) -> Result<(), Error> {
    let device = assigned(l1, 0)?;
    let expected = sha256(&l1.image(0)?[..HASHED]);
    let guest = Guest::new("hash:4M,write:1M@8M").device(&device).memory("size=512M,hugepages=2M");

    reserve(l1, 2048, 16)?;
    let parts = [
        "it needs 256 huge pages of 2M, and 16 of the host's 16 are free",
        &format!("echo 256 > {}/nr_hugepages", folder(2048)),
    ];
    assert_refused(&guest.boot(l1)?, &parts);

    has_all(l1, &guest, 2048, 256, &expected)
}

/// A guest that looks at `free_hugepages` has all that there are, in one mapping, and gives them back.
fn has_all(l1: &mut L1, guest: &Guest, kib: u64, pages: u64, expected: &str) -> Result<(), Error> {
    let free = format!("{}/free_hugepages", folder(kib));
    reserve(l1, kib, pages)?;
    let outcome = boot(l1, &guest.clone().look_at(INIT, &[&free]))?;
    assert_eq!(hashes(&outcome), [expected], "{}", outcome.account());
    let seen = &outcome.finished.sightings[0].files[&free];
    assert_eq!(seen, "0\n", "{}", outcome.account());
    let mapped = counter(&outcome, "/vfio_ioctls/map_dma");
    assert_eq!(mapped, 1, "{}", outcome.account());
    assert_eq!(l1.read(&free)?, format!("{pages}\n"), "all are given back");
    reserve(l1, kib, 0)
}

fn page_of_1g(l1: &mut L1) -> Result<(), Error> {
    let device = assigned(l1, 0)?;
    let expected = sha256(&l1.image(0)?[..HASHED]);
    let guest = Guest::new("hash:4M,write:1M@8M").device(&device);
    has_all(l1, &guest.memory("size=1G,hugepages=1G"), 1 << 20, 1, &expected)
}
