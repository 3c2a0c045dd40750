//! Programs that know nothing of the model run on it.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::io::Write as _;
use std::path::Path;
use std::process::{Command, Stdio};

const QEMU: &str = "/usr/bin/qemu-system-x86_64";

/// Runs a program with this input; returns all that it prints.
fn on_model(options: &[&str], program: &[&str], input: &str) -> String {
    let mut command = Command::new(env!("CARGO_BIN_EXE_on-model"));
    command.args(options).args(program);
    let piped = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = piped.spawn().unwrap();
    child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    let text = [output.stdout, output.stderr].concat();
    let text = String::from_utf8_lossy(&text).into_owned();
    assert!(output.status.success(), "{program:?}: {}\n{text}", output.status);
    text
}

#[test]
fn sysfs_and_device_nodes_are_those_of_the_machine() {
    let run = |program: &[&str]| on_model(&[], program, "");
    assert_eq!(run(&["ls", "/sys/bus/pci/devices"]), "0000:01:00.0\n0000:01:10.0\n0000:02:00.0\n");
    assert_eq!(run(&["ls", "/dev/vfio"]), "1\n2\n3\ndevices\nvfio\n");
    let device = "/sys/bus/pci/devices/0000:02:00.0";
    assert_eq!(run(&["cat", &format!("{device}/class")]), "0x010802\n");
    let resolved = run(&["realpath", &format!("{device}/iommu_group")]);
    assert_eq!(resolved, "/sys/kernel/iommu_groups/3\n");
    run(&["test", "-e", "/etc/passwd"]);
}

#[test]
fn a_machine_has_the_devices_that_are_named() {
    let options = ["--kernel", "6.1", "--device", "0000:05:00.0,group=9,kind=nic"];
    let run = |program: &[&str]| on_model(&options, program, "");
    assert_eq!(run(&["ls", "/sys/bus/pci/devices"]), "0000:05:00.0\n");
    assert_eq!(run(&["ls", "/dev/vfio"]), "9\ndevices\nvfio\n");
}

#[test]
fn qemu_assigns_a_device_to_its_guest() {
    if !Path::new(QEMU).exists() {
        println!("not run: {QEMU} is not there");
        return;
    }
    let machine = "-machine q35,accel=tcg -m 64 -nodefaults -display none -S -monitor stdio";
    let mut program = vec![QEMU];
    program.extend(machine.split(' '));
    program.extend(["-device", "vfio-pci,host=0000:02:00.0,addr=4"]);
    let output = on_model(&[], &program, "info pci\nquit\n");
    assert!(!output.contains("failed"), "{output}");
    let device = output.split_once("device   4, function 0").expect(&output).1;
    assert!(device.contains("PCI device 1b36:0010"), "{output}");
    assert!(device.contains("BAR0: 64 bit memory"), "{output}");
}
