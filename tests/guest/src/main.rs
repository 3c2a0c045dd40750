//! The init of the guest: the only program that runs in it.
//!
//! It does what the kernel command line asks in `guest.do=` (see [`plan`]), reports each step as one
//! JSON line behind a prefix that nothing else prints (see [`report`]), and ends the machine.

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
mod steps;
mod system;
mod toggle;
mod usb;
mod vfio;

use guest::{Ending, Report};
use plan::Plan;

/// Has the first report say that there is one, and no more.
const BRIEF: &str = "guest.brief";

fn main() {
    // The kernel hands its init what it does not understand itself; another program's arguments are ours.
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

/// The steps by themselves, in a machine that has its own init: to be compared with the same in a guest.
fn as_program(steps: &str) {
    let done = format!("guest.do={steps}").parse::<Plan>();
    let done = done.and_then(|plan| plan.steps.iter().try_for_each(steps::run));
    done.unwrap_or_else(|error| report::error(&error.to_string()));
}

/// Everything between the mounts and the end.
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
