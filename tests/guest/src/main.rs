//! The init of the guest, and its only program.
//!
//! It carries out the steps of `guest.do=` on the kernel command line (see [`plan`]), reports each
//! step as one line of JSON after a prefix (see [`report`]), and ends the machine.

mod bar_memory;
mod button;
mod disk;
mod edu;
mod interrupts;
mod lose;
mod memory;
mod modules;
mod net;
mod p2p;
mod pci;
mod plan;
mod ports;
mod registers;
mod report;
mod rom;
mod serial;
mod steps;
mod system;
mod toggle;
mod trials;
mod usb;
mod vfio;
mod visits;

use guest::{Ending, Report};
use plan::Plan;

/// A word on the kernel command line: the first report is [`Report::Up`].
const BRIEF: &str = "guest.brief";

fn main() {
    // The kernel passes unknown words of its command line to the init as arguments. Another process
    // than the init has the steps as its argument.
    if std::process::id() != 1
        && let Some(steps) = std::env::args().nth(1)
    {
        return as_program(&steps);
    }
    let ending = match system::mount_all().and_then(|()| work()) {
        Ok(ending) => ending,
        Err(error) => {
            report::error(&error.to_string());
            Ending::Off
        }
    };
    report::send(&Report::End { ending });
    system::end(ending);
}

/// Carries out steps on a machine with its own init, so that benchmarks can compare them with the
/// same steps in a guest.
fn as_program(steps: &str) {
    let done = format!("guest.do={steps}").parse::<Plan>();
    let done = done.and_then(|plan| plan.steps.iter().try_for_each(steps::run));
    done.unwrap_or_else(|error| report::error(&error.to_string()));
}

/// Carries out the plan; returns how the machine is to end.
fn work() -> Result<Ending, system::Error> {
    let command_line = system::command_line()?;
    let is_brief = command_line.split_whitespace().any(|word| word == BRIEF);
    report::send(&if is_brief { Report::Up } else { system::look()? });
    let plan: Plan = command_line.parse()?;
    modules::load_listed()?;
    for step in &plan.steps {
        if let Err(error) = steps::run(step) {
            report::error(&error.to_string());
        }
    }
    let mut disks = match plan.reboots {
        0 => Vec::new(),
        _ => disk::open_all(1)?,
    };
    let next = disks.first_mut().map_or(Ok(None), |disk| disk.next_reboot(plan.reboots))?;
    Ok(match next {
        Some(number) => {
            report::send(&Report::Reboot { number });
            Ending::Reboot
        }
        None => plan.ending,
    })
}
