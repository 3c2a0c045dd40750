//! The guest reboots, boots, pauses, powers off or is killed in the middle of a step.

use guest::Report;
use lab::protocol::{Ending, Trigger};
use lab::{Error, Guest, L1, Outcome, sha256, times};

use super::{INIT, SOCKET, add, amid, ask, assert_came, assert_left, guest, in_turn, mark};
use super::{remove, sightings, wait};
use crate::Test;
use crate::held::{Held, is_bus_master};
use crate::support::{assigned, boot, counter, hashes};

/// On machines with two NVMes first.
pub const TESTS: &[Test] = &[
    ("hot-plug: what came stays when the guest reboots", stays),
    ("hot-plug: a disk leaves and comes while the guest boots", during_boots),
    ("hot-plug: a paused guest gets a disk, and gives it back", paused),
    ("hot-plug: a guest powers off in the middle of a step", powers_off),
    ("hot-plug: nothing stays when the VMM is killed in the middle of a step", killed),
    ("hot-plug: a guest that does not answer loses the device by --force", silent),
];

const HASHED: usize = 64 << 10;
/// An option with which Linux does not answer ACPI hot-plug.
const SILENT: &str = "console=ttyS0 panic=-1 quiet acpiphp.disable=1";
const MS: u64 = 1_000_000;

fn rebooting(number: u64) -> String {
    format!("\"report\":\"reboot\",\"number\":{number}}}")
}

fn hash_of(l1: &L1, index: usize) -> Result<String, Error> {
    Ok(sha256(&l1.image(index)?[..HASHED]))
}

fn stays(l1: &mut L1) -> Result<(), Error> {
    let device = assigned(l1, 1)?;
    let guest = guest("functions:2,hash:64K,reboots:2").reboots();
    let outcome = boot(l1, &guest.run_at(INIT, add(l1, &[&device])))?;
    assert_came(&sightings::<1>(&outcome)[0], &device, 1);
    assert_eq!(counter(&outcome, "/reboots"), 2, "{}", outcome.details());
    assert_eq!(hashes(&outcome), vec![hash_of(l1, 1)?; 3], "{}", outcome.details());
    Ok(())
}

/// The removal begins at a moment from the end of a life to the start of the next one's init. The
/// addition follows, and is made once more if it came between two lives.
fn during_boots(l1: &mut L1) -> Result<(), Error> {
    let (own, device) = (assigned(l1, 0)?, assigned(l1, 1)?);
    let boots = times(5, 50);
    let first = add(l1, &[&device]);
    let life_ns = 600 * MS;
    let steps = format!("pause:1200,functions:3,disks:2,hash:64K,reboots:{boots}");
    let guest = guest(&steps).reboots().device(&own).run_at(INIT, first.clone());
    let guest = (1..=boots).fold(guest, |guest, number| {
        let moment = wait(life_ns / boots * (number - 1));
        let again = [moment, remove(&device), first.clone(), wait(500 * MS), first.clone()];
        guest.run_at(&rebooting(number), in_turn(&again))
    });
    let outcome = boot(l1, &guest)?;
    for sighting in &outcome.finished.sightings[1..] {
        println!("{:?}", sighting.said);
        // A request between two lives is refused.
        if !sighting.said.contains("try again") {
            assert_left(sighting, &device);
            assert_came(sighting, &device, 2);
        }
    }
    assert_eq!(counter(&outcome, "/reboots"), boots, "{}", outcome.details());
    let mut expected =
        [0, 1].map(|index| hash_of(l1, index)).into_iter().collect::<Result<Vec<_>, _>>()?;
    expected.sort();
    let each = usize::try_from(boots + 1).unwrap();
    let expected = expected.into_iter().flat_map(|hash| vec![hash; each]);
    assert_eq!(hashes(&outcome), expected.collect::<Vec<_>>(), "{}", outcome.details());
    Ok(())
}

/// Pauses the guest, and runs a program, which is in the middle of its work when the guest resumes.
fn while_paused(guest: Guest, marker: &str, program: &[String]) -> Guest {
    let mut guest = guest.ask_at(marker, SOCKET, &[("PUT", "vm.pause")]);
    guest.program.triggers.push(Trigger {
        marker: marker.into(),
        program: amid(150 * MS, program, &ask(SOCKET, "PUT", "vm.resume")),
        ..Trigger::default()
    });
    guest
}

fn paused(l1: &mut L1) -> Result<(), Error> {
    let device = assigned(l1, 1)?;
    let guest = guest("functions:2,hash:64K,mark:1,functions:1");
    let guest = while_paused(guest, INIT, &add(l1, &[&device]));
    let outcome = boot(l1, &while_paused(guest, &mark(1), &remove(&device)))?;
    let [_, added, _, removed] = sightings(&outcome);
    assert_came(added, &device, 1);
    assert_left(removed, &device);
    assert_eq!(hashes(&outcome), [hash_of(l1, 1)?], "{}", outcome.details());
    Ok(())
}

/// What L1's kernel holds without a VMM.
struct Before {
    held: Held,
    devices: [String; 2],
}

impl Before {
    fn of(l1: &mut L1) -> Result<Self, Error> {
        let devices = [assigned(l1, 0)?, assigned(l1, 1)?];
        Ok(Self { held: Held::now(l1)?, devices })
    }

    fn assert_restored(&self, l1: &mut L1, how: &str) -> Result<(), Error> {
        assert_eq!(Held::now(l1)?, self.held, "{how}");
        for device in &self.devices {
            assert!(!is_bus_master(l1, device)?, "{how}: {device} may do DMA");
        }
        Ok(())
    }
}

/// The moments of a step that takes 250 ms.
fn moments() -> impl Iterator<Item = u64> {
    let count = times(3, 40);
    (0..count).map(move |index| 250 * MS / count * index)
}

/// The guest powers off while it gets a disk, and while it gives it back.
fn powers_off(l1: &mut L1) -> Result<(), Error> {
    let before = Before::of(l1)?;
    let [own, device] = &before.devices;
    for moment in moments() {
        let pause = moment / MS;
        let first = guest(&format!("pause:{pause}")).memory("128M").device(own);
        let outcome = boot(l1, &first.run_at(INIT, add(l1, &[device])))?;
        println!("add, and power-off after {pause} ms: {:?}", outcome.finished.sightings[0].said);
        before.assert_restored(l1, &format!("power-off {pause} ms after an addition"))?;
        let steps = format!("functions:3,hash:64K,mark:1,pause:{}", pause / 4);
        let second = guest(&steps).memory("128M").device(own).run_at(INIT, add(l1, &[device]));
        let outcome = boot(l1, &second.run_at(&mark(1), remove(device)))?;
        let said = &sightings::<2>(&outcome)[1].said;
        println!("remove, and power-off after {} ms: {said:?}", pause / 4);
        before.assert_restored(l1, &format!("power-off {pause} ms after a removal"))?;
    }
    Ok(())
}

fn killed(l1: &mut L1) -> Result<(), Error> {
    let before = Before::of(l1)?;
    let [own, device] = &before.devices;
    let kill = ["/init", "send", "{pid}", "9"].map(str::to_owned);
    for moment in moments() {
        let busy = guest("functions:3,hash:64K,mark:1,read:100000").memory("128M").device(own);
        let during_add = busy.clone().run_at(INIT, amid(moment, &add(l1, &[device]), &kill));
        assert_killed(&during_add.boot(l1)?);
        before.assert_restored(l1, &format!("killed {moment} ns after an addition"))?;
        let busy = busy.run_at(INIT, add(l1, &[device]));
        let during_remove = busy.run_at(&mark(1), amid(moment / 16, &remove(device), &kill));
        assert_killed(&during_remove.boot(l1)?);
        before.assert_restored(l1, &format!("killed {moment} ns after a removal"))?;
    }
    let next = guest("functions:3,disks:2,hash:64K").device(own).run_at(INIT, add(l1, &[device]));
    assert_eq!(hashes(&boot(l1, &next)?).len(), 2);
    before.assert_restored(l1, "the end")
}

fn assert_killed(outcome: &Outcome) {
    assert_eq!(outcome.finished.ending, Ending::Signal(9), "{}", outcome.details());
    println!("killed: {:?}", outcome.finished.sightings.last().map(|sighting| &sighting.said));
}

/// The disk works, and Linux takes no notice of requests.
fn silent(l1: &mut L1) -> Result<(), Error> {
    let (device, held) = (assigned(l1, 1)?, Held::now(l1)?);
    let mut patient = remove(&device);
    patient.extend(["--timeout", "1"].map(str::to_owned));
    let mut forced = remove(&device);
    forced.push("--force".to_owned());
    let guest = guest("hash:64K,mark:1,pause:2500").command_line(SILENT).device(&device);
    let guest = guest.run_at(&mark(1), in_turn(&[patient, forced]));
    let outcome = boot(l1, &guest)?;
    let said = &sightings::<1>(&outcome)[0].said;
    let error = format!("error: {device}: the guest did not give the device back within 1 s");
    assert!(said.contains(&error) && said.contains("--force"), "{said}");
    assert_left(&outcome.finished.sightings[0], &device);
    assert!(outcome.reports.iter().any(|report| matches!(report, Report::Mark { .. })));
    assert_eq!(Held::now(l1)?, held);
    Ok(())
}
