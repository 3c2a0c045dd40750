//! Tests in the nested machine, which has an IOMMU.
//!
//! They boot emulated machines, so `cargo test` ignores them and `cargo lab test` runs them. Tests
//! with equal machines share one, so the lists are in the order of machines.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]
#![allow(clippy::arithmetic_side_effects, reason = "a test that overflows fails")]

mod aarch64;
mod big;
mod compat;
mod conformance;
mod control;
mod data;
mod debian;
mod devices;
mod endings;
mod errors;
mod examples;
mod files;
mod held;
mod host;
mod hot_plug;
mod layout;
mod leaving;
mod limits;
mod mappings;
mod models;
mod moves;
mod nics;
mod p2p;
mod presence;
mod privilege;
mod reads;
mod selftests;
mod shapes;
mod soak;
mod support;
mod tools;
mod usb;
mod used;
mod vf_tokens;
mod with_host;

use std::process::ExitCode;
use std::sync::{Arc, Mutex, PoisonError};

use lab::{
    APART, Arch, DISKS, Debian, Device, Error, I8255X, Iommu, Kernel, L1, LANE, LANES, Lab,
    Machine, NICS, OTHERS, OWN_BARS, Pool, SCREENS, SERIAL, SOUND, times,
};
use libtest_mimic::{Arguments, Trial};

/// A test: its name, and the function that runs it on a machine.
type Test = (&'static str, fn(&mut L1) -> Result<(), Error>);

/// The machine for most tests: two NVMes in groups of their own, and a group of several devices.
fn full(kernel: Kernel) -> Machine {
    Machine::new(kernel).devices(&[Device::Nvme, Device::Nvme, Device::SharedGroup])
}

/// A machine with an IOMMU of 39 address bits, as many client machines have.
fn narrow(kernel: Kernel) -> Machine {
    let machine = Machine::new(kernel).devices(&[Device::Nvme, Device::Nvme]);
    machine.iommu(Iommu::Intel { address_bits: 39 })
}

fn tests_of_39_bits() -> Vec<Test> {
    [layout::NARROW, hot_plug::arrivals::NARROW].concat()
}

/// A machine with iommufd, whose guests have Debian's kernel.
fn stock_guest() -> Machine {
    full(Kernel::Small).guest_kernel(Kernel::Stock612)
}

/// A machine with AMD's IOMMU, and with RAM for large guests.
fn amd() -> Machine {
    Machine::new(Kernel::Stock612).iommu(Iommu::Amd).memory_mib(6144)
}

/// A machine with a device of each kind.
fn all_devices(kernel: Kernel) -> Machine {
    Machine::new(kernel).devices(devices::DEVICES).memory_mib(3072)
}

/// Tests that share a machine: the machine's name, its description, and the tests.
type Group = (&'static str, Machine, Vec<Test>);

/// All tests. The lanes take about the same time.
fn lanes() -> [Vec<Group>; LANES] {
    if Arch::of_tests() == Arch::Aarch64 {
        return aarch64::lanes();
    }
    let long = match times(0, 1) {
        1 => [on_7_3(), by_iommufd(), of_models(), of_debian()].concat(),
        _ => Vec::new(),
    };
    [[first_lane(), long].concat(), second_lane()]
}

fn tests_of_the_data_path() -> Vec<Test> {
    [data::TESTS, reads::TESTS, mappings::TESTS].concat()
}

/// The kernel has no dma-bufs of BARs, so there is no peer-to-peer DMA by iommufd.
fn tests_by_iommufd() -> Vec<Test> {
    let hot_plug = hot_plug::arrivals::ON_ALL_DEVICES;
    [devices::TESTS, hot_plug, moves::ON_ALL_DEVICES, leaving::ON_ALL_DEVICES].concat()
}

fn tests_of_all_devices() -> Vec<Test> {
    [tests_by_iommufd().as_slice(), vf_tokens::TESTS, p2p::TESTS].concat()
}

fn first_lane() -> Vec<Group> {
    let stock = [
        tests_of_the_data_path().as_slice(),
        shapes::TESTS,
        layout::TESTS,
        big::HUGE_PAGES,
        endings::TESTS,
        errors::TESTS,
        moves::TESTS,
        leaving::ON_STOCK,
        presence::TESTS,
        control::TESTS,
        hot_plug::arrivals::TESTS,
        files::TESTS,
        limits::TESTS,
        limits::OF_CGROUPS,
        hot_plug::failures::OF_CGROUPS,
        privilege::ON_STOCK,
        tools::TESTS,
        conformance::TESTS,
    ]
    .concat();
    let of_nics = [nics::TESTS, hot_plug::arrivals::OF_NICS].concat();
    let e1000e = Machine::new(Kernel::Small).devices(&[Device::E1000e]);
    // Debian's kernels do not have iommufd, and the small one lacks the drivers of most devices.
    let by_iommufd = all_devices(Kernel::Small).guest_kernel(Kernel::Stock612);
    let ports = Machine::new(Kernel::Small).devices(host::DEVICES);
    let usb = Machine::new(Kernel::Stock612).devices(&[Device::Xhci, Device::TwoUhcis]);
    let used = Machine::new(Kernel::Small).devices(used::DEVICES).with_host_share();
    vec![
        ("6.12", full(Kernel::Stock612), stock),
        ("6.12, 39 bits", narrow(Kernel::Stock612), tests_of_39_bits()),
        ("6.12, AMD", amd(), [layout::AMD, big::TESTS].concat()),
        ("6.12", usb, usb::TESTS.to_vec()),
        ("6.12", all_devices(Kernel::Stock612), tests_of_all_devices()),
        ("small", e1000e.clone(), of_nics.clone()),
        ("small, type1", e1000e.by_type1(), of_nics),
        ("small, in use", used, [used::TESTS, compat::TESTS].concat()),
        (
            "small, ports",
            ports.clone(),
            [host::TESTS, hot_plug::host::ON_PORTS, presence::ON_PORTS].concat(),
        ),
        ("small, ports, type1", ports.by_type1(), [host::TESTS, hot_plug::host::ON_PORTS].concat()),
        ("small, 39 bits", narrow(Kernel::Small), tests_of_39_bits()),
        ("small, stock guest", stock_guest(), hot_plug::cycles::ON_STOCK_GUEST.to_vec()),
        ("iommufd", by_iommufd, tests_by_iommufd()),
    ]
}

fn second_lane() -> Vec<Group> {
    let small = [
        tests_of_the_data_path().as_slice(),
        endings::TESTS,
        hot_plug::arrivals::TESTS,
        hot_plug::failures::TESTS,
        hot_plug::lives::TESTS,
        hot_plug::cycles::TESTS,
        examples::TESTS,
        leaving::TESTS,
        moves::TESTS,
        moves::LONG,
        soak::TESTS,
        privilege::TESTS,
        conformance::ON_IOMMUFD,
    ]
    .concat();
    // The VFIO of 6.1 cannot add MSI-X vectors (NORESIZE), unlike that of 6.12. 6.1 cannot have the
    // guard, without which tests with many reads fail.
    let wide = Machine::new(Kernel::Stock61).devices(&[Device::WideNvme]);
    let old = [data::TESTS, moves::TESTS, conformance::TESTS].concat();
    vec![
        ("small", full(Kernel::Small), [&small, privilege::BY_IOMMUFD].concat()),
        ("small, type1", full(Kernel::Small).by_type1(), [&small, privilege::BY_TYPE1].concat()),
        (
            "small, stock guest, type1",
            stock_guest().by_type1(),
            hot_plug::cycles::ON_STOCK_GUEST.to_vec(),
        ),
        ("6.1", full(Kernel::Stock61), old),
        ("6.1, 400 vectors", wide, limits::ON_WIDE.to_vec()),
        ("6.1", all_devices(Kernel::Stock61), tests_of_all_devices()),
    ]
}

/// Long forms: the tests that the ordinary run has on Debian's kernels only, which lack iommufd. The
/// small kernel lacks kprobes, and most control groups.
fn by_iommufd() -> Vec<Group> {
    let tests = [
        shapes::TESTS,
        layout::TESTS,
        big::HUGE_PAGES,
        presence::TESTS,
        control::TESTS,
        files::TESTS,
        limits::TESTS,
        tools::TESTS,
    ];
    // The small kernel has no power button.
    let with_host = Machine::new(Kernel::Small).guest_kernel(Kernel::Stock612).with_host_share();
    vec![
        ("iommufd, long", stock_guest(), tests.concat()),
        ("small, host", with_host.clone(), hot_plug::failures::WITH_HOST.to_vec()),
        ("small, host, type1", with_host.by_type1(), hot_plug::failures::WITH_HOST.to_vec()),
    ]
}

/// Long forms: the models of the newest QEMU, each with Debian's driver for it.
fn of_models() -> Vec<Group> {
    let machine = |models| {
        let machine = Machine::new(Kernel::Small).guest_kernel(Kernel::Models612);
        machine.devices(&models::devices(models)).with_host_share()
    };
    vec![
        ("models", machine(DISKS), models::ON_DISKS.to_vec()),
        ("models, type1", machine(OWN_BARS).by_type1(), models::ON_OWN_BARS.to_vec()),
        ("models", machine(NICS), models::ON_NICS.to_vec()),
        ("models", machine(I8255X), models::ON_I8255X.to_vec()),
        ("models", machine(SERIAL), models::ON_SERIAL.to_vec()),
        ("models", machine(SOUND), models::ON_SOUND.to_vec()),
        ("models", machine(SCREENS), models::ON_SCREENS.to_vec()),
        ("models", machine(OTHERS), models::ON_OTHERS.to_vec()),
        ("models", machine(APART), models::ON_APART.to_vec()),
    ]
}

/// Long forms: a whole Debian as the guest.
fn of_debian() -> Vec<Group> {
    let machine = |debian| {
        let machine = Machine::new(Kernel::Small).devices(&debian::devices(debian));
        machine.memory_mib(3072).with_host_share()
    };
    vec![
        ("Debian 12", machine(Debian::Bookworm), debian::TESTS.to_vec()),
        ("Debian 13", machine(Debian::Trixie), debian::TESTS.to_vec()),
    ]
}

/// Long forms on kernels that the ordinary run does not have.
fn on_7_3() -> Vec<Group> {
    let of_peers = all_devices(Kernel::Small73).guest_kernel(Kernel::Stock612);
    let linked = Machine::new(Kernel::Small73).devices(used::DEVICES).with_host_share();
    let linked = linked.guest_kernel(Kernel::Small);
    let mock = Machine::new(Kernel::Small73).guest_kernel(Kernel::Small).with_host_share();
    let small = vec![
        ("7.3, mock", mock.memory_mib(4096), selftests::TESTS.to_vec()),
        (
            "7.3",
            full(Kernel::Small73).guest_kernel(Kernel::Small),
            [conformance::ON_7_3, privilege::BY_IOMMUFD].concat(),
        ),
        ("7.3", linked, compat::TESTS.to_vec()),
        ("7.3, iommufd", of_peers.clone(), [p2p::TESTS, &tests_by_iommufd()].concat()),
        ("7.3, type1", of_peers.by_type1(), p2p::TESTS.to_vec()),
    ];
    let stock = with_7_3_as_guest(Kernel::Stock73, "7.3 of Debian");
    let by_iommufd = with_7_3_as_guest(Kernel::Small73, "7.3 of Debian, iommufd");
    [small, stock, by_iommufd, of_debians_7_3()].concat()
}

/// What a guest with Debian's 7.3 does, on a host with a 7.3: each kind of device and of interrupt,
/// resets, hot-plug, and a host that takes devices.
fn with_7_3_as_guest(host: Kernel, group: &'static str) -> Vec<Group> {
    let [full, all, ports] =
        [full(host), all_devices(host), Machine::new(host).devices(host::DEVICES)]
            .map(|machine| machine.guest_kernel(Kernel::Stock73));
    let of_all = match all.has_iommufd() {
        true => [tests_by_iommufd().as_slice(), p2p::TESTS].concat(),
        false => tests_of_all_devices(),
    };
    vec![
        (
            group,
            full,
            [data::TESTS, endings::TESTS, moves::TESTS, hot_plug::arrivals::TESTS].concat(),
        ),
        (group, all, of_all),
        (group, ports, [host::TESTS, hot_plug::host::ON_PORTS].concat()),
    ]
}

/// Debian's 7.3 has type1, and no iommufd.
fn of_debians_7_3() -> Vec<Group> {
    let machine = full(Kernel::Stock73).guest_kernel(Kernel::Small);
    vec![("7.3 of Debian", machine, [leaving::ON_STOCK, conformance::TESTS].concat())]
}

/// The groups of the lane in the environment variable, or of all lanes.
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

/// The pool of machines. The lab is set up when the first test runs, not when tests are listed.
#[derive(Clone, Default)]
struct Machines(Arc<Mutex<Option<Pool>>>);

impl Machines {
    fn run(&self, machine: &Machine, test: fn(&mut L1) -> Result<(), Error>) -> Result<(), Error> {
        // After a panic of a test the pool is sound: it has no machine.
        let mut pool = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if pool.is_none() {
            *pool = Some(Pool::new(Lab::set_up(Arch::of_tests())?));
        }
        pool.as_mut().expect("it was just made").with(machine, test)
    }

    /// Prints the number of machines, which `cargo lab test` counts, and ends the last machine.
    fn report(&self) {
        if let Some(pool) = self.0.lock().unwrap_or_else(PoisonError::into_inner).take() {
            let tally = pool.tally();
            println!("nested machines: {} booted, {} replaced", tally.booted, tally.faults);
        }
    }
}
