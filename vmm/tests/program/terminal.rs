//! Modes of the terminal that is the guest's console.

use std::fs::File;
use std::io::Write;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use nix::pty::openpty;
use nix::sys::termios::{LocalFlags, tcgetattr};

use super::{has_kvm, program};

/// Runs the VMM with a guest that spins, on a new terminal. `before` precedes the command line, and
/// `typed` is written when the terminal is raw. Returns the terminal's modes before, during and
/// after.
fn terminal_modes(before: &str, typed: &[u8]) -> [String; 3] {
    let kernel = program(&[]);
    let terminal = openpty(None, None).unwrap();
    let own = tcgetattr(&terminal.master).unwrap();
    let vmm = format!(
        "{before} {} --memory 64M --kernel {}",
        env!("CARGO_BIN_EXE_vmm"),
        kernel.path().display()
    );
    // Only the foreground job sets raw mode; setsid makes the shell's job the foreground job.
    let child = Command::new("setsid")
        .args(["--ctty", "sh", "-c", &format!("stty -g; {vmm}; stty -g")])
        .stdin(terminal.slave)
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let deadline = Instant::now() + Duration::from_secs(10);
    while tcgetattr(&terminal.master).unwrap() == own && Instant::now() < deadline {
        std::thread::sleep(Duration::from_millis(10));
    }
    let during = tcgetattr(&terminal.master).unwrap();
    File::from(terminal.master.try_clone().unwrap()).write_all(typed).unwrap();
    let output = child.wait_with_output().unwrap();
    let modes = String::from_utf8(output.stdout).unwrap();
    let (first, last) = modes.trim().split_once('\n').unwrap();
    let is_raw =
        !during.local_flags.intersects(LocalFlags::ICANON | LocalFlags::ECHO | LocalFlags::ISIG);
    [first.into(), is_raw.to_string(), last.into()]
}

#[test]
fn the_terminal_is_raw_while_the_guest_runs_and_restored_after_a_signal() {
    if !has_kvm("the_terminal_is_raw_while_the_guest_runs_and_restored_after_a_signal") {
        return;
    }
    let [before, is_raw, after] = terminal_modes("timeout --foreground 1", b"");
    assert_eq!((is_raw.as_str(), after), ("true", before));
}

#[test]
fn ctrl_a_x_ends_the_vmm_and_restores_the_terminal() {
    if !has_kvm("ctrl_a_x_ends_the_vmm_and_restores_the_terminal") {
        return;
    }
    let [before, is_raw, after] = terminal_modes("", b"\x01x");
    assert_eq!((is_raw.as_str(), after), ("true", before));
}
