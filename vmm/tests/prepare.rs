//! Output and exit status of the preparing commands, on any host.

#![allow(clippy::unwrap_used, reason = "a failing test panics")]

use std::process::{Command, Output};

fn vmm(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_vmm")).args(args).output().unwrap()
}

fn json(output: &Output) -> Vec<serde_json::Value> {
    serde_json::from_slice(&output.stdout).unwrap()
}

/// The PCI functions of this host.
fn functions() -> Vec<String> {
    let entries = std::fs::read_dir("/sys/bus/pci/devices").into_iter().flatten();
    let mut names: Vec<_> =
        entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

#[test]
fn lists_every_function_of_the_host_once() {
    let output = vmm(&["devices", "--json"]);
    let addresses: Vec<_> =
        json(&output).iter().map(|device| device["address"].as_str().unwrap().to_owned()).collect();
    assert_eq!((addresses, output.status.code()), (functions(), Some(0)));
    let table = String::from_utf8(vmm(&["devices"]).stdout).unwrap();
    assert!(table.starts_with("ADDRESS"), "{table}");
    assert_eq!(table.lines().count(), functions().len() + 1);
}

#[test]
fn check_exits_with_1_if_a_line_fails() {
    let output = vmm(&["check", "--json", "0000:ff:1f.7"]);
    let lines = json(&output);
    let absent = serde_json::json!({
        "check": "device",
        "device": "0000:ff:1f.7",
        "status": "fail",
        "what": "there is no such PCI device",
        "remedy": "vmm devices",
    });
    assert!(lines.contains(&absent), "{lines:?}");
    assert_eq!(output.status.code(), Some(1));
    let output = vmm(&["check", "--json"]);
    let fails = json(&output).iter().any(|line| line["status"] == "fail");
    assert_eq!(output.status.code(), Some(i32::from(fails)));
}

#[test]
fn refuses_to_bind_or_unbind_a_missing_device() {
    for command in ["bind", "unbind"] {
        let output = vmm(&[command, "0000:ff:1f.7"]);
        let text = String::from_utf8(output.stderr).unwrap();
        let expected = "error: 0000:ff:1f.7: there is no such PCI device\n  list the devices with: vmm devices\n";
        assert_eq!((text.as_str(), output.status.code()), (expected, Some(1)));
    }
}

#[test]
fn a_closed_stdout_is_no_error() {
    let line = format!("{} devices | true; exit ${{PIPESTATUS[0]}}", env!("CARGO_BIN_EXE_vmm"));
    let output = Command::new("bash").args(["-c", &line]).output().unwrap();
    assert_eq!(String::from_utf8(output.stderr).unwrap(), "");
    assert_eq!(output.status.code(), Some(0));
}
