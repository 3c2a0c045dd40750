//! The agent, the init of L1. It mounts file systems, loads modules, and serves the lab's requests.
//!
//! Tests also run it as an ordinary program in L1: `/init in-root ...`, `/init unbind ADDRESS`,
//! `/init power ADDRESS STATE`, `/init cut ADDRESS`, `/init join ADDRESS`,
//! `/init exchange PATH PATH`, and those of [`compose`].

mod cgroup;
mod channel;
mod compose;
mod fail;
mod guard;
mod pci;
mod presence;
mod run;
mod setup;
mod sriov;

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;

use lab::protocol::{Message, Request};
use nix::sys::reboot::{RebootMode, reboot};
use nix::unistd::sync;

use channel::{Requests, Sender};
use guard::Guard;

fn main() {
    let arguments: Vec<String> = std::env::args().collect();
    if arguments.get(1).is_some_and(|word| word == run::IN_ROOT) {
        // This returns only if it fails.
        eprintln!("agent: {}", run::exec_in_root(&arguments));
        std::process::exit(127);
    }
    if let Some([word, address]) = arguments.get(1..)
        && word == pci::UNBIND
    {
        return println!("{}", pci::unbind(address));
    }
    if let Some([word, address, rest @ ..]) = arguments.get(1..)
        && let Some(said) = presence::act(word, address, rest)
    {
        return println!("{said}");
    }
    if let Some([word, one, other]) = arguments.get(1..)
        && word == setup::EXCHANGE
    {
        return println!("{:?}", setup::exchange(one, other));
    }
    if let Some(said) = compose::act(arguments.get(1..).unwrap_or_default()) {
        return print!("{said}");
    }
    if let Err(error) = serve() {
        // The lab keeps the end of the console for its error messages.
        eprintln!("agent: {error}");
    }
    sync();
    // This fails only without CAP_SYS_BOOT, which the init has.
    let _ = reboot(RebootMode::RB_POWER_OFF);
}

/// Serves requests until the lab asks to stop or closes the port.
fn serve() -> std::io::Result<()> {
    setup::mount_all()?;
    setup::load_modules()?;
    let (sender, requests) = channel::open()?;
    let guard = Guard::set();
    let unguarded = guard.as_ref().err().map(ToString::to_string);
    sender.send(&Message::Ready { at_ns: run::now_ns(), unguarded })?;
    answer_all(&sender, requests, guard.ok())
}

fn answer_all(
    sender: &Sender,
    requests: Requests,
    mut guard: Option<Guard>,
) -> std::io::Result<()> {
    for request in requests {
        if let Some(guard) = &mut guard {
            guard.make_room();
        }
        match request? {
            Request::Stop => return Ok(()),
            request => sender.send(&answer(request, sender))?,
        }
    }
    Ok(())
}

fn answer(request: Request, sender: &Sender) -> Message {
    let what = format!("{request:?}");
    let result = match request {
        Request::Run(program) => run::run(&program, sender).map(|f| Message::Finished(Box::new(f))),
        Request::Read { path } => setup::read(&path).map(|contents| Message::Contents { contents }),
        Request::Write { path, contents } => {
            setup::write(Path::new(&path), &contents).map(|()| Message::Done)
        }
        Request::Rename { from, to } => fs::rename(from, to).map(|()| Message::Done),
        Request::Link { path, target } => symlink(target, path).map(|()| Message::Done),
        Request::Copy { from, to } => fs::copy(from, to).map(|_| Message::Done),
        Request::Cover { path, contents } => setup::cover(&path, &contents).map(|()| Message::Done),
        Request::Uncover { path } => setup::uncover(&path).map(|()| Message::Done),
        Request::Remove { path } => setup::remove(&path).map(|()| Message::Done),
        Request::Own { path, user } => setup::own(Path::new(&path), user).map(|()| Message::Done),
        Request::Bind { address, driver } => {
            pci::bind(&address, driver.as_deref()).map(|()| Message::Done)
        }
        Request::VirtualFunctions { address, count } => {
            sriov::enable(&address, count).map(|()| Message::Done)
        }
        Request::KernelLog => setup::kernel_log().map(|contents| Message::Contents { contents }),
        Request::Share { at } => setup::share(Path::new(&at)).map(|()| Message::Done),
        Request::Stop => Ok(Message::Done),
    };
    result.unwrap_or_else(|error| Message::Failed { why: format!("{what}: {error}") })
}
