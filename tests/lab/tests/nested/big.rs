//! Guests with large RAM, and with reserved huge pages.

use guest::Report;
use lab::protocol::Request;
use lab::{Error, Guest, L1, sha256};

use crate::Test;
use crate::support::{assert_refused, assigned, boot, counter, hashes, map_calls};

/// On a machine of 6 GiB.
pub const TESTS: &[Test] = &[
    // This is the first, because L1's memory is not fragmented yet.
    ("big: a guest on one reserved page of 1G uses its device", page_of_1g),
    ("big: a guest has RAM above 4 GiB", above_4_gib),
];

/// On a machine of 2 GiB.
pub const HUGE_PAGES: &[Test] =
    &[("big: a guest on reserved pages of 2M uses its device", pages_of_2m)];

const HASHED: usize = 4 << 20;
const INIT: &str = "\"report\":\"init\"";

/// Without a device, the VMM does not populate RAM: only the guest's kernel touches it.
fn above_4_gib(l1: &mut L1) -> Result<(), Error> {
    const ROLLUP: &str = "/proc/{pid}/smaps_rollup";
    let guest = Guest::new("pause:1").memory("5G").look_at(INIT, &[ROLLUP]);
    let outcome = boot(l1, &guest)?;
    let Some(Report::Init { memory_kib, .. }) = outcome.reports.first() else {
        panic!("no first report\n{}", outcome.details());
    };
    assert!(*memory_kib > 4700 << 10, "{}", outcome.details());
    assert_eq!(counter(&outcome, "/ram_regions"), 2, "{}", outcome.details());
    let rollup = &outcome.finished.sightings[0].files[ROLLUP];
    let none = rollup.lines().any(|line| line.split_whitespace().eq(["AnonHugePages:", "0", "kB"]));
    assert!(rollup.contains("AnonHugePages:") && !none, "no transparent huge pages\n{rollup}");
    Ok(())
}

fn folder(kib: u64) -> String {
    format!("/sys/kernel/mm/hugepages/hugepages-{kib}kB")
}

fn reserve(l1: &mut L1, kib: u64, pages: u64) -> Result<(), Error> {
    let path = format!("{}/nr_hugepages", folder(kib));
    l1.perform(&Request::Write { path: path.clone(), contents: pages.to_string() })?;
    assert_eq!(l1.read(&path)?.trim(), pages.to_string(), "pages of {kib} KiB");
    Ok(())
}

/// With too few reserved pages, the error has the command that reserves them.
fn pages_of_2m(l1: &mut L1) -> Result<(), Error> {
    let device = assigned(l1, 0)?;
    let expected = sha256(&l1.image(0)?[..HASHED]);
    let guest = Guest::new("hash:4M,write:1M@8M").device(&device).memory("size=512M,hugepages=2M");

    reserve(l1, 2048, 16)?;
    let parts = [
        "the guest needs 256 huge pages of 2M, and 16 of the host's 16 are free",
        &format!("echo 256 > {}/nr_hugepages", folder(2048)),
    ];
    assert_refused(&guest.boot(l1)?, &parts);

    uses_all(l1, &guest, 2048, 256, &expected)
}

/// Reserves `pages` pages, and asserts that the guest uses all of them in one mapping and that they
/// are free after its end.
fn uses_all(l1: &mut L1, guest: &Guest, kib: u64, pages: u64, expected: &str) -> Result<(), Error> {
    let free = format!("{}/free_hugepages", folder(kib));
    reserve(l1, kib, pages)?;
    let outcome = boot(l1, &guest.clone().look_at(INIT, &[&free]))?;
    assert_eq!(hashes(&outcome), [expected], "{}", outcome.details());
    let seen = &outcome.finished.sightings[0].files[&free];
    assert_eq!(seen, "0\n", "{}", outcome.details());
    assert_eq!(map_calls(&outcome), 1, "{}", outcome.details());
    assert_eq!(l1.read(&free)?, format!("{pages}\n"), "all pages are free again");
    reserve(l1, kib, 0)
}

fn page_of_1g(l1: &mut L1) -> Result<(), Error> {
    let device = assigned(l1, 0)?;
    let expected = sha256(&l1.image(0)?[..HASHED]);
    let guest = Guest::new("hash:4M,write:1M@8M").device(&device);
    uses_all(l1, &guest.memory("size=1G,hugepages=1G"), 1 << 20, 1, &expected)
}
