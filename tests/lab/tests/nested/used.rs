//! Devices that the host uses: `vmm bind` refuses them, and `vmm check` and `devices` name the use.

use lab::protocol::{Ending, Program};
use lab::{Device, Error, L1, place};

use crate::Test;
use crate::support::assert_parts;
use crate::with_host::{HOST, share};

pub const TESTS: &[Test] = &[
    ("used: a mounted disk is refused, and bound after umount", mounted),
    ("used: a disk that a process has open is refused unless forced", opened),
    ("used: a NIC that is up with an address is refused", up),
];

/// An NVMe and a NIC.
pub const DEVICES: &[Device] = &[Device::Nvme, Device::E1000e];

const SUCCESS: Ending = Ending::Status(0);
const REFUSED: Ending = Ending::Status(1);

/// Runs a shell script with the host's programs.
fn shell(l1: &mut L1, script: &str) -> Result<(), Error> {
    share(l1)?;
    let script = format!("PATH=/usr/sbin:/usr/bin:/sbin:/bin; set -e; {script}");
    let arguments = ["/bin/sh", "-c", &script].map(str::to_owned).to_vec();
    let program = Program { arguments, root: Some(HOST.into()), ..Program::default() };
    let run = l1.run(program)?;
    assert_eq!(run.finished.ending, SUCCESS, "{script}:\n{}{}", run.stdout, run.stderr);
    Ok(())
}

/// Runs `vmm` as root, and asserts how it ends and that its output has these parts.
fn vmm(l1: &mut L1, words: &str, ending: Ending, parts: &[&str]) -> Result<(), Error> {
    let arguments = [place::VMM].into_iter().chain(words.split(' ')).map(str::to_owned).collect();
    let run = l1.run(Program { arguments, ..Program::default() })?;
    let text = format!("{}{}", run.stdout, run.stderr);
    assert_eq!(run.finished.ending, ending, "vmm {words} printed:\n{text}");
    assert_parts(&text, parts);
    Ok(())
}

/// Asserts that all commands name the use of a device.
fn is_used(l1: &mut L1, device: &str, parts: &[&str]) -> Result<(), Error> {
    let refused = format!("error: {device}: the host uses the device for ");
    let force = format!("to bind it anyway: vmm bind --force {device}");
    let all = [&[refused.as_str(), &force], parts].concat();
    vmm(l1, &format!("bind {device}"), REFUSED, &all)?;
    let all = [&["FAIL", "in-use", "'vmm bind' refuses it"], parts].concat();
    vmm(l1, &format!("check {device}"), REFUSED, &all)
}

/// Binds the NVMe to its driver; returns its address and the name of its disk.
fn disk(l1: &mut L1) -> Result<(String, String), Error> {
    let device = l1.machine().address_of(Device::Nvme);
    l1.bind(&device, Some("nvme"))?;
    let folder = format!("/sys/bus/pci/devices/{device}/nvme");
    let controller = l1.read(&folder)?;
    let names = l1.read(&format!("{folder}/{}", controller.trim()))?;
    let disk = names.lines().find(|name| name.ends_with("n1")).map(str::to_owned);
    Ok((device, disk.unwrap_or_else(|| panic!("no disk among {names}"))))
}

fn mounted(l1: &mut L1) -> Result<(), Error> {
    let (device, disk) = disk(l1)?;
    shell(l1, &format!("mkfs.ext4 -q -F /dev/{disk} 8M; mount -t ext4 /dev/{disk} /mnt"))?;
    let what = format!("the file system on {HOST}/mnt (/dev/{disk})");
    is_used(l1, &device, &[&what, &format!("umount {HOST}/mnt")])?;
    vmm(l1, "devices", SUCCESS, &[&format!("no: in use by the host for {what}")])?;
    shell(l1, "umount /mnt")?;
    vmm(l1, &format!("bind {device}"), SUCCESS, &["(was: nvme)"])?;
    vmm(l1, &format!("unbind {device}"), SUCCESS, &["(was: vfio-pci)"])
}

fn opened(l1: &mut L1) -> Result<(), Error> {
    let (device, disk) = disk(l1)?;
    shell(l1, &format!("sleep 3600 </dev/{disk} >/dev/null 2>&1 & echo $! >/tmp/sleeps"))?;
    is_used(l1, &device, &["sleep (process ", &format!("which has /dev/{disk} open")])?;
    vmm(l1, &format!("bind --force {device}"), SUCCESS, &["(was: nvme)"])?;
    shell(l1, "kill $(cat /tmp/sleeps)")?;
    vmm(l1, &format!("unbind {device}"), SUCCESS, &["(was: vfio-pci)"])
}

fn up(l1: &mut L1) -> Result<(), Error> {
    let device = l1.machine().address_of(Device::E1000e);
    l1.bind(&device, Some("e1000e"))?;
    let nic = l1.read(&format!("/sys/bus/pci/devices/{device}/net"))?;
    let idle = ["bound to e1000e", "the host does not use the device"];
    vmm(l1, &format!("check {device}"), REFUSED, &idle)?;
    shell(l1, &format!("ip address add 10.9.8.7/24 dev {nic}; ip link set {nic} up"))?;
    let what = format!("the network interface {nic}, which is up and has an address");
    is_used(l1, &device, &[&what, &format!("ip link set {nic} down")])?;
    shell(l1, &format!("ip link set {nic} down"))?;
    vmm(l1, &format!("bind {device}"), SUCCESS, &["(was: e1000e)"])?;
    vmm(l1, &format!("unbind {device}"), SUCCESS, &["(was: vfio-pci)"])
}
