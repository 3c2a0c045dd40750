//! Device fds: their info ioctls and interrupts.

use libc::{EBADF, EBUSY, EINVAL, ENOTTY};
use vfio_model::{Driver, Fd, IrqData, IrqSet, Irqfd};

use super::{Check, Ready, Stage, Verdict, done, fails, same};
use crate::Core;

pub fn checks<C: Core>() -> Vec<Check<C>> {
    vec![
        ("the info ioctls check sizes and bounds", infos),
        ("SET_IRQS checks its bounds", bad_sets),
        ("an index refuses the actions that it lacks", actions),
        ("INTx is enabled, fires, and is disabled", pin),
        ("one eventfd unmasks INTx", unmask),
        ("vectors are bound all or none", all_or_none),
        ("MSI-X grows where the kernel supports it", growth),
        ("the request interrupt has an eventfd", request),
        ("a conventional function has the error interrupt since 7.3", error),
        ("an eventfd has one irqfd of each machine, and since 7.3 one of all", irqfd),
        ("a close frees the interrupts", gone),
    ]
}

const NONE: u32 = 1;
const EVENTFD: u32 = 4;
const MASK: u32 = 8;
const UNMASK: u32 = 16;
const TRIGGER: u32 = 32;
const INTX: u32 = 0;
const MSIX: u32 = 2;
const ERROR: u32 = 3;
const REQUEST: u32 = 4;

fn plain(flags: u32, index: u32, start: u32, count: u32) -> IrqSet {
    IrqSet::new(flags, index, start, count, IrqData::None)
}

fn bind(index: u32, start: u32, fds: &[Fd]) -> IrqSet {
    let count = u32::try_from(fds.len()).unwrap_or(0);
    IrqSet::new(EVENTFD | TRIGGER, index, start, count, IrqData::Eventfds(fds.to_vec()))
}

/// The first device of the first group, which has MSI-X.
fn open<C: Core>(stage: &mut Stage<'_, C>) -> Result<Fd, String> {
    let Ready { group, .. } = stage.ready()?;
    let name = stage.device_of(0)?;
    stage.device(group, &name)
}

fn argument(argsz: u32, index: u32) -> Vec<u8> {
    let words = [argsz, 0, index];
    let mut bytes: Vec<u8> = words.iter().flat_map(|word| word.to_ne_bytes()).collect();
    bytes.resize(128, 0);
    bytes
}

fn infos<C: Core>(stage: &mut Stage<'_, C>) -> Verdict {
    let device = open(stage)?;
    fails(stage.core.device_info(device, &mut argument(15, 0)), EINVAL)?;
    done(stage.core.device_info(device, &mut argument(16, 0)))?;
    fails(stage.core.region_info(device, &mut argument(31, 0)), EINVAL)?;
    done(stage.core.region_info(device, &mut argument(32, 7)))?;
    fails(stage.core.region_info(device, &mut argument(32, 9)), EINVAL)?;
    fails(stage.core.irq_info(device, &mut argument(15, 0)), EINVAL)?;
    done(stage.core.irq_info(device, &mut argument(16, 1)))?;
    fails(stage.core.irq_info(device, &mut argument(16, 5)), EINVAL)
}

fn bad_sets<C: Core>(stage: &mut Stage<'_, C>) -> Verdict {
    let device = open(stage)?;
    let good = bind(MSIX, 0, &[Fd(-1)]);
    let with = |change: fn(&mut IrqSet)| {
        let mut set = good.clone();
        change(&mut set);
        set
    };
    for bad in [
        with(|set| set.argsz = 19),
        with(|set| set.argsz = 23),
        with(|set| set.index = 5),
        with(|set| set.start = 4096),
        with(|set| set.count = 4096),
        with(|set| (set.start, set.count) = (1, u32::MAX - 1)),
        with(|set| set.flags = TRIGGER),
        with(|set| set.flags = NONE | EVENTFD | TRIGGER),
        with(|set| set.flags |= 64),
        plain(NONE | TRIGGER, MSIX, 0, 1),
        plain(NONE | TRIGGER, MSIX, 0, 0),
    ] {
        fails(stage.core.set_irqs(device, &bad), EINVAL)?;
    }
    Ok(())
}

fn actions<C: Core>(stage: &mut Stage<'_, C>) -> Verdict {
    let device = open(stage)?;
    for (flags, index) in [
        (NONE, INTX),
        (NONE | MASK | UNMASK, INTX),
        (NONE | MASK, MSIX),
        (NONE | UNMASK, MSIX),
        (NONE | UNMASK, REQUEST),
    ] {
        fails(stage.core.set_irqs(device, &plain(flags, index, 0, 1)), ENOTTY)?;
    }
    Ok(())
}

fn pin<C: Core>(stage: &mut Stage<'_, C>) -> Verdict {
    let (device, event) = (open(stage)?, stage.eventfd()?);
    for flags in [NONE | MASK, NONE | UNMASK, NONE | TRIGGER] {
        fails(stage.core.set_irqs(device, &plain(flags, INTX, 0, 1)), EINVAL)?;
    }
    fails(stage.core.set_irqs(device, &plain(NONE | TRIGGER, INTX, 0, 0)), EINVAL)?;
    done(stage.core.set_irqs(device, &bind(INTX, 0, &[event])))?;
    done(stage.core.set_irqs(device, &plain(NONE | MASK, INTX, 0, 1)))?;
    done(stage.core.set_irqs(device, &plain(NONE | TRIGGER, INTX, 0, 1)))?;
    same(done(stage.core.signals(event))?, 1)?;
    fails(stage.core.set_irqs(device, &bind(MSIX, 0, &[event])), EINVAL)?;
    done(stage.core.set_irqs(device, &plain(NONE | TRIGGER, INTX, 0, 0)))?;
    done(stage.core.set_irqs(device, &bind(MSIX, 0, &[event])))
}

fn unmask<C: Core>(stage: &mut Stage<'_, C>) -> Verdict {
    let (device, event) = (open(stage)?, stage.eventfd()?);
    let on = |fd: Fd| IrqSet::new(EVENTFD | UNMASK, INTX, 0, 1, IrqData::Eventfds(vec![fd]));
    done(stage.core.set_irqs(device, &bind(INTX, 0, &[event])))?;
    fails(stage.core.set_irqs(device, &on(Fd(1_000_000))), EBADF)?;
    fails(stage.core.set_irqs(device, &on(device)), EINVAL)?;
    done(stage.core.set_irqs(device, &on(event)))?;
    fails(stage.core.set_irqs(device, &on(event)), EBUSY)?;
    done(stage.core.set_irqs(device, &on(Fd(-1))))?;
    done(stage.core.set_irqs(device, &on(event)))
}

fn all_or_none<C: Core>(stage: &mut Stage<'_, C>) -> Verdict {
    let (device, one, two) = (open(stage)?, stage.eventfd()?, stage.eventfd()?);
    fails(stage.core.set_irqs(device, &bind(MSIX, 0, &[one, Fd(1_000_000)])), EBADF)?;
    fails(stage.core.set_irqs(device, &plain(NONE | TRIGGER, MSIX, 0, 1)), EINVAL)?;
    done(stage.core.set_irqs(device, &bind(MSIX, 0, &[one, two])))?;
    let second = IrqSet::new(2 | TRIGGER, MSIX, 0, 2, IrqData::Bools(vec![0, 1]));
    done(stage.core.set_irqs(device, &second))?;
    same((done(stage.core.signals(one))?, done(stage.core.signals(two))?), (0, 1))?;
    fails(stage.core.set_irqs(device, &bind(MSIX, 1, &[device])), EINVAL)?;
    done(stage.core.set_irqs(device, &plain(NONE | TRIGGER, MSIX, 0, 2)))?;
    same((done(stage.core.signals(one))?, done(stage.core.signals(two))?), (1, 0))
}

fn growth<C: Core>(stage: &mut Stage<'_, C>) -> Verdict {
    let (device, event) = (open(stage)?, stage.eventfd()?);
    // A kernel that can grow MSI-X accepts what adds no vector, also where the host's interrupt
    // controller cannot add one.
    let (grows, accepts) = (stage.scene.description.can_grow_msix(), stage.kernel().grows_msix());
    done(stage.core.set_irqs(device, &bind(MSIX, 0, &[event])))?;
    for (more, works) in [
        (bind(MSIX, 1, &[event]), grows),
        (bind(MSIX, 2, &[Fd(-1)]), accepts),
        (plain(NONE | TRIGGER, MSIX, 0, 2), accepts),
    ] {
        let result = stage.core.set_irqs(device, &more);
        let errno = result.err().and_then(|error| error.raw_os_error());
        same(errno, (!works).then_some(EINVAL))?;
    }
    same(done(stage.core.signals(event))?, u64::from(accepts).saturating_add(grows.into()))
}

fn request<C: Core>(stage: &mut Stage<'_, C>) -> Verdict {
    let (device, event) = (open(stage)?, stage.eventfd()?);
    fails(stage.core.set_irqs(device, &plain(NONE | TRIGGER, REQUEST, 0, 1)), EINVAL)?;
    fails(stage.core.set_irqs(device, &bind(REQUEST, 0, &[])), EINVAL)?;
    done(stage.core.set_irqs(device, &bind(REQUEST, 0, &[event])))?;
    done(stage.core.set_irqs(device, &plain(NONE | TRIGGER, REQUEST, 0, 1)))?;
    same(done(stage.core.signals(event))?, 1)?;
    done(stage.core.set_irqs(device, &plain(NONE | TRIGGER, REQUEST, 0, 0)))?;
    fails(stage.core.set_irqs(device, &plain(NONE | TRIGGER, REQUEST, 0, 0)), EINVAL)
}

/// The NICs behind a bridge are the third group, where the machine has them.
fn error<C: Core>(stage: &mut Stage<'_, C>) -> Verdict {
    let Some(number) = stage.scene.groups.get(2).copied() else {
        return Ok(());
    };
    if stage.scene.description.has_driver(number, Driver::Host) {
        return Ok(());
    }
    let (container, group) = (stage.container()?, stage.group(2)?);
    done(stage.core.set_container(group, container))?;
    done(stage.core.set_iommu(container, 3))?;
    let (name, event) = (stage.device_of(2)?, stage.eventfd()?);
    let device = stage.device(group, &name)?;
    match stage.kernel().reports_errors_of_all() {
        true => {
            done(stage.core.irq_info(device, &mut argument(16, ERROR)))?;
            done(stage.core.set_irqs(device, &bind(ERROR, 0, &[event])))
        }
        false => {
            fails(stage.core.irq_info(device, &mut argument(16, ERROR)), EINVAL)?;
            fails(stage.core.set_irqs(device, &bind(ERROR, 0, &[event])), EINVAL)
        }
    }
}

fn irqfd<C: Core>(stage: &mut Stage<'_, C>) -> Verdict {
    let (first, second, eventfd) = (stage.kvm()?, stage.kvm()?, stage.eventfd()?);
    let with = |gsi, flags| Irqfd { eventfd, gsi, flags, resample: eventfd };
    for (bad, errno) in [
        (with(5, 4), EINVAL),
        (Irqfd { eventfd: Fd(-1), ..with(5, 0) }, EBADF),
        (Irqfd { eventfd: first, ..with(5, 0) }, EINVAL),
        (Irqfd { resample: Fd(-1), ..with(5, Irqfd::RESAMPLE) }, EBADF),
    ] {
        fails(stage.core.irqfd(first, &bad), errno)?;
    }
    done(stage.core.irqfd(first, &with(5, Irqfd::DEASSIGN)))?;
    done(stage.core.irqfd(first, &with(5, 0)))?;
    fails(stage.core.irqfd(first, &with(6, 0)), EBUSY)?;
    // Another number names another irqfd, which does not exist.
    done(stage.core.irqfd(first, &with(6, Irqfd::DEASSIGN)))?;
    fails(stage.core.irqfd(first, &with(5, Irqfd::RESAMPLE)), EBUSY)?;
    if stage.kernel().excludes_irqfds_of_others() {
        fails(stage.core.irqfd(second, &with(5, 0)), EBUSY)?;
        done(stage.core.irqfd(first, &with(5, Irqfd::DEASSIGN)))?;
    }
    done(stage.core.irqfd(second, &with(5, 0)))?;
    stage.close(second)?;
    if stage.kernel().excludes_irqfds_of_others() {
        done(stage.core.irqfd(first, &with(5, 0)))?;
    }
    Ok(())
}

fn gone<C: Core>(stage: &mut Stage<'_, C>) -> Verdict {
    let Ready { group, .. } = stage.ready()?;
    let name = stage.device_of(0)?;
    let (device, event) = (stage.device(group, &name)?, stage.eventfd()?);
    done(stage.core.set_irqs(device, &bind(MSIX, 0, &[event])))?;
    stage.close(device)?;
    let device = stage.device(group, &name)?;
    fails(stage.core.set_irqs(device, &plain(NONE | TRIGGER, MSIX, 0, 1)), EINVAL)?;
    done(stage.core.set_irqs(device, &bind(INTX, 0, &[event])))
}
