//! Control of a guest by its VMM's socket, while the guest's device is busy.

use guest::Report;
use lab::protocol::Request;
use lab::{Error, Guest, L1, sha256};

use crate::Test;
use crate::support::{assigned, boot, hashes};

pub const TESTS: &[Test] = &[
    ("control: pauses a guest during I/O, and presses its power button", control),
    ("control: the VMM removes no file outside of its socket's folder", confined),
];

const SOCKET: &str = "/tmp/vm.sock";
const INIT: &str = "\"report\":\"init\"";
const HASH: &str = "\"report\":\"hash\"";
const LISTENS: &str = "\"report\":\"button\",\"pressed\":false";

fn control(l1: &mut L1) -> Result<(), Error> {
    let device = assigned(l1, 0)?;
    let expected = sha256(&l1.image(0)?[..1 << 20]);
    let put = |what: &'static str| ("PUT", what);
    let get = |what: &'static str| ("GET", what);
    let while_paused =
        [put("vm.pause"), get("vm.info"), get("vm.counters"), get("vm.counters"), put("vm.resume")];
    let guest = Guest::new("hash:64K,read:2000,hash:1M,button:5000")
        .device(&device)
        .arguments(["--control", SOCKET])
        .ask_at(INIT, SOCKET, &[get("vm.info"), get("vm.devices")])
        // The guest has just begun its reads.
        .ask_at(HASH, SOCKET, &while_paused)
        .ask_at(LISTENS, SOCKET, &[put("vm.power-button")]);
    let outcome = boot(l1, &guest)?;
    let [first, paused, button] = &outcome.finished.sightings[..] else {
        panic!("{}", outcome.details())
    };
    assert!(
        first.said.contains("\"state\":\"running\"") && first.said.contains(&device),
        "{first:?}"
    );
    assert!(paused.said.contains("\"state\":\"paused\""), "{paused:?}");
    let total =
        |text: &str| text.split("\"total\":").nth(1)?.split(['}', ',']).next().map(str::to_owned);
    let counters: Vec<_> = paused.said.lines().filter_map(total).collect();
    assert!(counters.len() == 2 && counters[0] == counters[1], "{counters:?}");
    for part in ["\"interrupts\":{\"msix[0]\":", "\"bars\":[{\"0x"] {
        assert!(paused.said.contains(part), "no {part} in {}", paused.said);
    }
    assert!(button.said.contains("204 No Content"), "{button:?}");
    let pressed = Report::Button { pressed: true };
    assert!(outcome.reports.contains(&pressed), "{}", outcome.details());
    assert_eq!(
        hashes(&outcome).iter().filter(|hash| **hash == expected).count(),
        1,
        "{}",
        outcome.details()
    );
    Ok(())
}

/// At its end the VMM removes the file at the path of its socket. Landlock allows that only in the
/// folder in which the socket was made. So if another folder replaces that one while the VMM runs,
/// a file there stays. The seccomp filters allow no other call that changes a file.
fn confined(l1: &mut L1) -> Result<(), Error> {
    let device = assigned(l1, 0)?;
    let [own, other] = ["/tmp/own", "/tmp/other"];
    let [socket, file] = [own, other].map(|folder| format!("{folder}/vm.sock"));
    for path in [&format!("{own}/here"), &file] {
        l1.perform(&Request::Write { path: path.clone(), contents: "another's".into() })?;
    }
    let exchange = ["/init", "exchange", own, other].map(str::to_owned).to_vec();
    let guest = Guest::new("hash:64K").device(&device).arguments(["--control", &socket]);
    let outcome = boot(l1, &guest.run_at(INIT, exchange))?;
    assert_eq!(outcome.finished.sightings[0].said.trim(), "Ok(())", "{}", outcome.details());
    assert_eq!(l1.read(own)?, "vm.sock", "another's");
    assert!(l1.read(other)?.contains("vm.sock"), "its own");
    // Without an exchange, the VMM removes the socket.
    l1.perform(&Request::Remove { path: socket.clone() })?;
    boot(l1, &Guest::new("hash:64K").device(&device).arguments(["--control", &socket]))?;
    assert_eq!(l1.read(own)?, "");
    Ok(())
}
