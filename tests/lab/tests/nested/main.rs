//! What the project must show on a machine with an IOMMU, shown in the nested machine.
//!
//! These are ignored unless asked for, as `cargo lab test` does: they boot emulated machines. Tests that ask
//! for equal machines share one, so the list is in order of machines.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]
#![allow(clippy::arithmetic_side_effects, reason = "a test that overflows fails")]

mod big;
mod conformance;
mod control;
mod data;
mod devices;
mod endings;
mod errors;
mod held;
mod host;
mod layout;
mod leaving;
mod mappings;
mod moves;
mod nics;
mod p2p;
mod privilege;
mod reads;
mod shapes;
mod soak;
mod support;
mod tools;
mod usb;

use std::process::ExitCode;
use std::sync::{Arc, Mutex, PoisonError};

use lab::{Device, Error, Iommu, Kernel, L1, LANE, LANES, Lab, Machine, Pool};
use libtest_mimic::{Arguments, Trial};

/// A test: its name, and what it does in a machine.
type Test = (&'static str, fn(&mut L1) -> Result<(), Error>);

/// The machine for most tests: two NVMes in groups of their own, and a group of several devices.
fn full(kernel: Kernel) -> Machine {
    Machine::new(kernel).devices(&[Device::Nvme, Device::Nvme, Device::SharedGroup])
}

/// With an IOMMU of 39 address bits, as many client machines have.
fn narrow(kernel: Kernel) -> Machine {
    Machine::new(kernel).iommu(Iommu::Intel { address_bits: 39 })
}

/// With an IOMMU of AMD's, and RAM for large guests.
fn amd() -> Machine {
    Machine::new(Kernel::Stock612).iommu(Iommu::Amd).memory_mib(6144)
}

/// With a device of each kind.
fn zoo(kernel: Kernel) -> Machine {
    Machine::new(kernel).devices(devices::DEVICES).memory_mib(3072)
}

/// Tests that share a machine, with the machine's name.
type Group = (&'static str, Machine, Vec<Test>);

/// Every test, those of equal machines together. The lanes take about as long as one another.
fn lanes() -> [Vec<Group>; LANES] {
    let main = [data::TESTS, reads::TESTS, mappings::TESTS].concat();
    let rest = [
        shapes::TESTS,
        layout::TESTS,
        big::HUGE_PAGES,
        endings::TESTS,
        errors::TESTS,
        moves::TESTS,
    ]
    .concat();
    let of_zoo = [devices::TESTS, p2p::TESTS, moves::ON_ZOO, leaving::ON_ZOO].concat();
    let small = [
        main.as_slice(),
        endings::TESTS,
        leaving::TESTS,
        moves::TESTS,
        moves::LONG,
        soak::TESTS,
        privilege::TESTS,
    ]
    .concat();
    let e1000e = Machine::new(Kernel::Small).devices(&[Device::E1000e]);
    let ports = Machine::new(Kernel::Small).devices(host::DEVICES);
    let xhci = Machine::new(Kernel::Stock612).devices(&[Device::Xhci]);
    [
        vec![
            (
                "6.12",
                full(Kernel::Stock612),
                [
                    main.as_slice(),
                    &rest,
                    leaving::ON_STOCK,
                    control::TESTS,
                    tools::TESTS,
                    conformance::TESTS,
                ]
                .concat(),
            ),
            ("6.12, 39 bits", narrow(Kernel::Stock612), layout::NARROW.to_vec()),
            ("6.12, AMD", amd(), [layout::AMD, big::TESTS].concat()),
            ("6.12", xhci, usb::TESTS.to_vec()),
            ("6.12", zoo(Kernel::Stock612), of_zoo.clone()),
            ("small", e1000e, nics::TESTS.to_vec()),
            ("small, ports", ports, host::TESTS.to_vec()),
            ("small, 39 bits", narrow(Kernel::Small), layout::NARROW.to_vec()),
        ],
        vec![
            ("small", full(Kernel::Small), small),
            // MSI-X of its VFIO cannot grow (NORESIZE), unlike 6.12's. Too old for the guard that many reads
            // need.
            (
                "6.1",
                full(Kernel::Stock61),
                [data::TESTS, moves::TESTS, conformance::TESTS].concat(),
            ),
            ("6.1", zoo(Kernel::Stock61), of_zoo),
        ],
    ]
}

/// Those of the lane that is asked for, or all.
fn groups() -> Vec<Group> {
    let lane = std::env::var(LANE).ok();
    let lane: Option<usize> = lane.map(|lane| lane.parse().expect("a lane is a number"));
    let lanes = lanes().into_iter().enumerate();
    lanes
        .filter(|(number, _)| lane.is_none_or(|lane| lane == *number))
        .flat_map(|(_, groups)| groups)
        .collect()
}

fn main() -> ExitCode {
    let mut arguments = Arguments::from_args();
    arguments.test_threads = Some(1);
    let machines = Machines::default();
    let trials = groups().into_iter().flat_map(|(group, machine, tests)| {
        let machines = machines.clone();
        tests.into_iter().map(move |test| trial(group, machine.clone(), test, machines.clone()))
    });
    let conclusion = libtest_mimic::run(&arguments, trials.collect());
    machines.report();
    conclusion.exit_code()
}

fn trial(group: &str, machine: Machine, (name, test): Test, machines: Machines) -> Trial {
    let run = move || machines.run(&machine, test).map_err(|error| error.to_string().into());
    Trial::test(format!("{name} ({group})"), run).with_ignored_flag(true)
}

/// The machines of all tests; nothing is set up before the first test that runs.
#[derive(Clone, Default)]
struct Machines(Arc<Mutex<Option<Pool>>>);

impl Machines {
    fn run(&self, machine: &Machine, test: fn(&mut L1) -> Result<(), Error>) -> Result<(), Error> {
        // A test that panicked has left the pool without a machine, and sound.
        let mut pool = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if pool.is_none() {
            *pool = Some(Pool::new(Lab::set_up()?));
        }
        pool.as_mut().expect("it was just made").with(machine, test)
    }

    /// Says how many machines there were, and ends the last.
    fn report(&self) {
        if let Some(pool) = self.0.lock().unwrap_or_else(PoisonError::into_inner).take() {
            let tally = pool.tally();
            println!("nested machines: {} booted, {} replaced", tally.booted, tally.faults);
        }
    }
}
