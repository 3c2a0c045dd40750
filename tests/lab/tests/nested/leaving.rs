//! Nothing stays after any end of the VMM: no page is pinned or mapped, the device does no DMA, and
//! it works for the next guest at once.

use std::collections::BTreeMap;

use lab::protocol::{Ending, Program, Request};
use lab::{Device, Error, Guest, L1, Outcome, place, times};

use crate::Test;
use crate::held::{Held, field, is_bus_master};
use crate::support::{assert_refused, assigned, boot, faults, take};

/// On machines with an NVMe first; on the fastest kernel only.
pub const TESTS: &[Test] = &[
    ("leaving: nothing stays after a signal, an abort or a triple fault", by_signal),
    ("leaving: nothing stays after a kill at a random moment", killed),
    ("leaving: nothing stays when memory for the guest is short", without_memory),
    ("leaving: one process attaches and detaches a device repeatedly", attach),
];

/// For kernels with kprobes.
pub const ON_STOCK: &[Test] = &[("leaving: the kernel resets the device of a killed VMM", reset)];

/// On a machine with an edu.
pub const ON_ALL_DEVICES: &[Test] =
    &[("leaving: DMA in progress reaches nothing after the end", dma_in_progress)];

const SIGHUP: i32 = 1;
const SIGINT: i32 = 2;
const SIGABRT: i32 = 6;
const SIGKILL: i32 = 9;
const SIGTERM: i32 = 15;

const HASH: &str = "\"report\":\"hash\"";
/// Steps during which the VMM ends.
const BUSY: &str = "hash:64K,read:100000";
const DURING_IO: &str = "during I/O";
const SMALL: &str = "64M";

/// The state before a VMM starts, which must be the same after its end.
struct Before {
    device: String,
    held: Held,
    faults: usize,
}

impl Before {
    fn of(l1: &mut L1, device: String) -> Result<Self, Error> {
        Ok(Self { device, held: Held::now(l1)?, faults: faults(l1)? })
    }

    /// Asserts that the kernel holds the same pages, that the device is no bus master, and that the
    /// IOMMU reported no fault.
    fn assert_restored(&self, l1: &mut L1, how: &str) -> Result<(), Error> {
        assert_eq!(Held::now(l1)?, self.held, "{how}");
        assert!(!is_bus_master(l1, &self.device)?, "{how}: {} may do DMA", self.device);
        assert_eq!(faults(l1)?, self.faults, "{how}\n{}", l1.kernel_log()?);
        Ok(())
    }

    /// The same, and that the next guest can use the device at once.
    fn assert_usable(&self, l1: &mut L1, how: &str) -> Result<(), Error> {
        self.assert_restored(l1, how)?;
        let next = Guest::new("hash:64K").memory(SMALL).device(&self.device);
        boot(l1, &next).map(drop)
    }
}

/// SIGABRT stands for a panic of a thread: the VMM is built with `panic = "abort"`.
fn by_signal(l1: &mut L1) -> Result<(), Error> {
    let device = assigned(l1, 0)?;
    let before = Before::of(l1, device)?;
    let orderly = [SIGTERM, SIGINT, SIGHUP].map(|signal| (signal, Ending::Status(128 + signal)));
    for (signal, ending) in orderly.into_iter().chain([(SIGABRT, Ending::Signal(SIGABRT))]) {
        let guest = Guest::new(BUSY).memory(SMALL).device(&before.device);
        let outcome = guest.signal_at(HASH, signal).boot(l1)?;
        assert_eq!(outcome.finished.ending, ending, "{}", outcome.details());
        before.assert_usable(l1, &format!("signal {signal}"))?;
    }
    let guest = Guest::new("read:10,end:reboot").command_line("console=ttyS0 quiet reboot=t");
    let outcome = guest.memory(SMALL).device(&before.device).boot(l1)?;
    assert!(outcome.stderr.contains("triple fault"), "{}", outcome.details());
    before.assert_usable(l1, "a triple fault")
}

/// Divides the run time of a VMM into equal parts, and kills one VMM at a random moment of each
/// part.
fn killed(l1: &mut L1) -> Result<(), Error> {
    let kills = times(8, 200);
    let device = assigned(l1, 0)?;
    let before = Before::of(l1, device)?;
    let guest = Guest::new("hash:64K,read:8000").memory(SMALL).device(&before.device);
    let life = boot(l1, &guest)?.finished.elapsed_ns;
    let mut random = Random::fresh(l1)?;
    println!("kills of a life of {life} ns; seed {:#x}", random.0);
    let mut ends = BTreeMap::new();
    for kill in 0..kills {
        let moment = (life / kills) * kill + random.below(life / kills);
        let outcome = guest.clone().kill_after(moment).boot(l1)?;
        // The last kill may come after the end.
        let was_killed = outcome.finished.ending == Ending::Signal(SIGKILL);
        assert!(was_killed || outcome.is_success(), "{}", outcome.details());
        *ends.entry(reached(&outcome)).or_insert(0_u64) += 1;
        before.assert_usable(l1, &format!("killed after {moment} ns"))?;
        if (kill + 1).is_multiple_of(25) {
            println!("{} kills: {ends:?}", kill + 1);
        }
    }
    println!("killed: {ends:?}");
    assert!(
        ends.contains_key(DURING_IO) && ends.len() > 1,
        "no kill during I/O, or none before it: {ends:?}"
    );
    Ok(())
}

/// How far a guest came before the kill.
fn reached(outcome: &Outcome) -> &'static str {
    let seen = |text| outcome.console.contains(text);
    match () {
        () if outcome.finished.ending != Ending::Signal(SIGKILL) => "after the end",
        () if seen(HASH) => DURING_IO,
        () if seen("\"report\":\"init\"") => "in the guest's init",
        () if !outcome.console.is_empty() => "in the guest's kernel",
        () => "before the guest printed anything",
    }
}

/// Knuth's MMIX generator.
struct Random(u64);

impl Random {
    fn fresh(l1: &mut L1) -> Result<Self, Error> {
        let uuid = l1.read("/proc/sys/kernel/random/uuid")?;
        let digits: String = uuid.chars().filter(char::is_ascii_hexdigit).take(15).collect();
        Ok(Self(u64::from_str_radix(&digits, 16).unwrap()))
    }

    fn below(&mut self, end: u64) -> u64 {
        self.0 =
            self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 20) % end
    }
}

/// With too little address space, the VMM reports an error with a remedy. With too little memory it
/// prints a warning, and the kernel's out-of-memory killer ends it.
fn without_memory(l1: &mut L1) -> Result<(), Error> {
    let device = assigned(l1, 0)?;
    let before = Before::of(l1, device)?;
    let mut limited = Guest::new("hash:64K").memory("512M").device(&before.device);
    limited.program.address_space = Some(400 << 20);
    let parts = ["error: guest RAM of 512 MiB", "--memory", "ulimit -v"];
    assert_refused(&limited.boot(l1)?, &parts);
    before.assert_usable(l1, "no address space")?;

    let has_mib = field(&l1.read("/proc/meminfo")?, "MemTotal:").unwrap() >> 10;
    let all = format!("{}M", has_mib & !1);
    let outcome = Guest::new("hash:64K").memory(&all).device(&before.device).boot(l1)?;
    assert_eq!(outcome.finished.ending, Ending::Signal(SIGKILL), "{}", outcome.details());
    let warning = format!("--memory {all}: this host has ");
    assert!(outcome.stderr.contains(&warning), "{}", outcome.details());
    before.assert_usable(l1, "out of memory")
}

/// The example's VM has only as many slots and GSIs as one device takes, and the example checks its
/// own fds, mappings and memory.
fn attach(l1: &mut L1) -> Result<(), Error> {
    let device = assigned(l1, 0)?;
    let before = Before::of(l1, device)?;
    let count = times(20, 200).to_string();
    let run = l1.run(Program {
        arguments: [place::example("attach"), before.device.clone(), count.clone()].to_vec(),
        ..Program::default()
    })?;
    println!("{}", run.stdout);
    let output = format!("{}{}", run.stdout, run.stderr);
    assert_eq!(run.finished.ending, Ending::Status(0), "{output}");
    assert!(run.stdout.contains(&format!("after {count}: Held")), "{output}");
    before.assert_usable(l1, "attached and detached")
}

const PROBES: &str = "/sys/kernel/tracing/kprobe_events";
const HITS: &str = "/sys/kernel/tracing/kprobe_profile";
const PROBE_ON: &str = "/sys/kernel/tracing/events/kprobes/device_reset/enable";

/// The kernel resets the device when the VMM opens it, and when it closes the killed VMM's file.
fn reset(l1: &mut L1) -> Result<(), Error> {
    let device = assigned(l1, 0)?;
    // vfio-pci calls this function for every reset of a single function.
    write(l1, PROBES, "p:device_reset __pci_reset_function_locked")?;
    write(l1, PROBE_ON, "1")?;
    let guest = Guest::new(BUSY).memory("128M").device(&device);
    let outcome = guest.look_at(HASH, &[HITS]).signal_at(HASH, SIGKILL).boot(l1)?;
    let hits = |text: &str| field(text, "device_reset");
    let seen = hits(&outcome.finished.sightings[0].files[HITS]);
    let after = hits(&l1.read(HITS)?);
    write(l1, PROBE_ON, "0")?;
    write(l1, PROBES, "")?;
    assert_eq!((seen, after), (Some(1), Some(2)), "{}", outcome.details());
    Ok(())
}

fn write(l1: &mut L1, path: &str, contents: &str) -> Result<(), Error> {
    l1.perform(&Request::Write { path: path.into(), contents: contents.into() })
}

/// The device always does DMA, each of which takes 0.1 s, and has no reset. The kernel turns its
/// bus mastering off before it unmaps its memory, so the IOMMU reports no fault.
fn dma_in_progress(l1: &mut L1) -> Result<(), Error> {
    let device = take(l1, Device::Edu)?;
    let before = Before::of(l1, device)?;
    for signal in [SIGKILL, SIGABRT, SIGTERM] {
        let guest = Guest::new("copy:60000").small().memory("128M");
        let outcome = guest
            .device_without_reset(&before.device)
            .signal_at("\"report\":\"copies\"", signal)
            .boot(l1)?;
        assert!(!outcome.is_success(), "{}", outcome.details());
        before.assert_restored(l1, &format!("signal {signal}"))?;
        // This takes longer than the DMA in progress.
        let wait = Guest::new("pause:300").small().memory("128M");
        boot(l1, &wait)?;
        before.assert_restored(l1, &format!("a while after signal {signal}"))?;
    }
    Ok(())
}
