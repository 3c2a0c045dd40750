//! A whole Debian as the guest: its own kernel, initrd and systemd, on an assigned NVMe, with a NIC
//! that is assigned too. QEMU as VMM boots it too, to the reboot: its journal is the reference.

use lab::protocol::{Ending, Program};
use lab::{Debian, Device, Error, Guest, L1, place};

use crate::Test;
use crate::support::{assert_parts, assigned, counter, take};
use crate::with_host::qemu;

/// On a machine with [`devices`].
pub const TESTS: &[Test] =
    &[("debian: it runs, installs a package, reboots and powers off", works)];

/// Two disks with the same contents, and a NIC.
pub fn devices(debian: Debian) -> [Device; 3] {
    [Device::Debian(debian), Device::Debian(debian), Device::E1000e]
}

const COMMAND_LINE: &str = "root=/dev/nvme0n1 ro console=ttyS0 quiet systemd.show_status=true";
const MEMORY_MIB: &str = "1024";
const CPUS: u32 = 2;

/// A guest that takes longer, by L1's clock, is killed.
const LIMIT_NS: u64 = 240_000_000_000;

fn works(l1: &mut L1) -> Result<(), Error> {
    let disks = [assigned(l1, 0)?, assigned(l1, 1)?];
    let nic = take(l1, Device::E1000e)?;
    let ours = boots(&by_vmm(l1, &disks[0], &nic)?);
    let [first, second] = ours.as_slice() else { panic!("not two boots: {ours:#?}") };
    for boot in [first, second] {
        println!("vmm: {}", boot.summary());
        is_running(boot);
    }
    assert_eq!(first.value("install"), "0", "{first:#?}");
    assert_eq!(second.value("hello"), "Hello, world!", "{second:#?}");
    let reference = boots(&by_qemu(l1, &disks[1], &nic)?);
    let [reference] = reference.as_slice() else { panic!("not one boot: {reference:#?}") };
    println!("QEMU: {}", reference.summary());
    let known = reference.journal();
    let new: Vec<_> =
        ours.iter().flat_map(Boot::journal).filter(|it| !known.contains(it)).collect();
    assert!(new.is_empty(), "the journal has errors that it has not with QEMU: {new:#?}");
    Ok(())
}

fn by_vmm(l1: &mut L1, disk: &str, nic: &str) -> Result<String, Error> {
    let guest = Guest::new("none")
        .kernel(place::DEBIAN_KERNEL)
        .initrd(place::DEBIAN_INITRD)
        .command_line(COMMAND_LINE)
        .memory(&format!("{MEMORY_MIB}M"))
        .cpus(CPUS)
        .device(disk)
        .device(nic)
        .arguments(arguments(l1).iter().copied())
        .reboots()
        .kill_after(LIMIT_NS);
    let outcome = guest.boot(l1)?;
    assert_eq!(outcome.finished.ending, Ending::Status(0), "{}", outcome.details());
    assert_eq!(counter(&outcome, "/reboots"), 1, "{}", outcome.details());
    println!("vmm: {:.1} s of L1's time", outcome.finished.elapsed_ns as f64 / 1e9);
    Ok(outcome.console)
}

/// Linux 6.1 logs an error until it finds ECAM, unless it has PCI's ports.
fn arguments(l1: &L1) -> &'static [&'static str] {
    match l1.machine().devices.contains(&Device::Debian(Debian::Bookworm)) {
        true => &["--pci-ports"],
        false => &[],
    }
}

fn by_qemu(l1: &mut L1, disk: &str, nic: &str) -> Result<String, Error> {
    let files = [place::DEBIAN_KERNEL, place::DEBIAN_INITRD];
    let size = format!("-m {MEMORY_MIB} -smp {CPUS}");
    let program = qemu(l1, files, &[disk, nic], &size, COMMAND_LINE.to_owned())?;
    let program = Program { signal_after: Some((LIMIT_NS, 9)), ..program };
    let run = l1.run(program)?;
    assert_eq!(run.finished.ending, Ending::Status(0), "{}\n{}", run.stderr, run.stdout);
    println!("QEMU: {:.1} s of L1's time", run.finished.elapsed_ns as f64 / 1e9);
    Ok(run.stdout)
}

/// What a boot of Debian reported (tests/lab/debian/report): names and values.
#[derive(Debug, Default)]
struct Boot(Vec<(String, String)>);

/// The boots in the output of a guest's console.
fn boots(console: &str) -> Vec<Boot> {
    let mut boots = vec![Boot::default()];
    for line in console.lines().filter_map(|line| Some(line.split_once("@debian ")?.1)) {
        let (name, value) = line.trim_end().split_once(' ').unwrap_or((line, ""));
        let last = boots.last_mut().unwrap();
        last.0.push((name.to_owned(), value.to_owned()));
        if name == "end" {
            boots.push(Boot::default());
        }
    }
    // After the last end there is nothing.
    boots.pop();
    boots
}

impl Boot {
    fn values(&self, name: &str) -> impl Iterator<Item = &str> {
        self.0.iter().filter(move |own| own.0 == name).map(|own| own.1.as_str())
    }

    fn value(&self, name: &str) -> &str {
        self.values(name).next().unwrap_or_else(|| panic!("no {name} in {self:#?}"))
    }

    fn summary(&self) -> String {
        let [state, uptime, startup, end] =
            ["state", "uptime", "startup", "end"].map(|it| self.value(it));
        let errors: Vec<_> = self.values("journal").collect();
        format!(
            "{state} after {uptime} s, then {end}; {startup}; errors in the journal: {errors:#?}"
        )
    }

    /// The errors in the journal, without their numbers, which differ from boot to boot.
    fn journal(&self) -> Vec<String> {
        let plain = |text: &str| text.replace(|digit: char| digit.is_ascii_digit(), "");
        self.values("journal").map(plain).collect()
    }
}

fn is_running(boot: &Boot) {
    assert_eq!(boot.value("state"), "running", "{boot:#?}");
    assert_eq!(boot.value("driver"), "e1000e", "{boot:#?}");
    assert_parts(boot.value("address"), &[" UP ", " 10.0.2.15/24"]);
    assert_parts(boot.value("root"), &["/dev/nvme0n1 rw"]);
}
