//! Devices that come and go while the guest runs.

pub mod arrivals;
pub mod cycles;
pub mod failures;
pub mod host;
pub mod lives;

use lab::protocol::Sighting;
use lab::{Guest, L1, Outcome, place};

/// The control socket of the guest's VMM.
const SOCKET: &str = "/tmp/vm.sock";
const INIT: &str = "\"report\":\"init\"";

/// A guest with a control socket.
fn guest(steps: &str) -> Guest {
    Guest::new(steps).arguments(["--control", SOCKET])
}

/// The report of the step `mark:NUMBER`.
fn mark(number: u64) -> String {
    format!("\"report\":\"mark\",\"number\":{number}}}")
}

fn command(words: &[&str]) -> Vec<String> {
    [place::VMM].iter().chain(words).map(|word| (*word).to_owned()).collect()
}

/// `vmm add` of devices, each with its options.
fn add<S: AsRef<str>>(l1: &L1, devices: &[S]) -> Vec<String> {
    let devices = devices.iter().flat_map(|device| ["--vfio", device.as_ref()]);
    let iommu = l1.machine().type1.then_some(["--iommu", "type1"]);
    let words = ["add", SOCKET].into_iter().chain(devices).chain(iommu.into_iter().flatten());
    command(&words.collect::<Vec<_>>())
}

fn remove(device: &str) -> Vec<String> {
    command(&["remove", SOCKET, device])
}

/// A program of the agent.
fn agent(words: &[&str]) -> Vec<String> {
    ["/init"].iter().chain(words).map(|word| (*word).to_owned()).collect()
}

/// Programs to run one after another.
fn in_turn(programs: &[Vec<String>]) -> Vec<String> {
    [agent(&["in-turn"]), programs.join(&";".to_owned())].concat()
}

/// Runs a program a while after the start of the first.
fn amid(nanoseconds: u64, first: &[String], second: &[String]) -> Vec<String> {
    let separator = [";".to_owned()];
    [&agent(&["amid", &nanoseconds.to_string()])[..], first, &separator, second].concat()
}

fn wait(nanoseconds: u64) -> Vec<String> {
    agent(&["wait", &nanoseconds.to_string()])
}

/// A request to a control socket.
fn ask(socket: &str, method: &str, resource: &str) -> Vec<String> {
    agent(&["ask", socket, method, resource])
}

/// How long each program of `in_turn` took, in nanoseconds.
fn durations(sighting: &Sighting) -> Vec<u64> {
    let lines = sighting.said.lines().filter_map(|line| line.strip_prefix("took "));
    lines.map(|line| line.trim_end_matches(" ns").parse().unwrap()).collect()
}

fn median(mut times: Vec<u64>) -> u64 {
    times.sort_unstable();
    times[times.len() / 2]
}

/// Asserts that the device came to the guest's slot.
fn assert_came(sighting: &Sighting, device: &str, slot: u8) {
    let line = format!("{device} is 0000:00:{slot:02x}.0 in the guest\n");
    assert!(sighting.said.contains(&line), "{sighting:?}");
}

fn assert_left(sighting: &Sighting, device: &str) {
    assert!(sighting.said.contains(&format!("{device} is free\n")), "{sighting:?}");
}

/// What the triggers saw; all of them must have run.
fn sightings<const N: usize>(outcome: &Outcome) -> &[Sighting; N] {
    let sightings = outcome.finished.sightings.as_slice();
    sightings.try_into().unwrap_or_else(|_| panic!("{}", outcome.details()))
}
