//! Character devices: their binds, attaches, and what they keep in use.

use libc::{EADDRINUSE, EBADF, EBADFD, EBUSY, EEXIST, EFAULT, EINVAL, ENODEV, ENOENT, ENOMEM};
use libc::{ENOTTY, EPERM};
use vfio_model::{AttachPt, BindIommufd, Fd, IoasMap, IoasMapFile, IrqData, IrqSet};

use super::iommufd::Space;
use super::{Check, Ready, Stage, Verdict, done, fails, same};
use crate::Core;
use crate::arena::{PAGE, READABLE, WRITABLE};

pub fn checks<C: Core>() -> Vec<Check<C>> {
    vec![
        ("a character device gives access from its bind on", access),
        ("a wrong bind is refused", bad_binds),
        ("a bind takes a token since 7.3, if the device has one", token),
        ("a group is open or bound", open_or_bound),
        ("a group has one iommufd", one_owner),
        ("an attached device narrows the IOVA ranges", narrows),
        ("a wrong attach is refused", bad_attaches),
        ("an attach takes a PASID since 7.3, if the page table is for one", pasid),
        ("areas and allowed IOVAs can be in the way of an attach", in_the_way),
        ("an attach pins all areas or none", pins),
        ("a map needs memory while a device is attached", needs_memory),
        ("an attach pins files that are memfds and large enough", pins_files),
        ("locked memory counts by user", by_user),
        ("an attached device moves to another address space", moves),
        ("devices of two groups share a page table", shared),
        ("devices of a group are in one address space", together),
        ("a bound device keeps its iommufd", kept),
        ("KVM links a character device", link),
        ("a bound device takes no groups for a hot reset", hot_reset),
        ("a bound device has interrupts", interrupts),
    ]
}

fn attach_to(id: u32) -> AttachPt {
    AttachPt { argsz: AttachPt::ARGSZ, flags: 0, id }
}

const DETACH: AttachPt = AttachPt { argsz: AttachPt::DETACH_ARGSZ, flags: 0, id: 0 };

fn bind_to(iommufd: Fd) -> BindIommufd {
    BindIommufd::to(iommufd)
}

impl<C: Core> Stage<'_, C> {
    /// Opens the character device of the first device of a group.
    #[track_caller]
    pub(super) fn cdev(&mut self, which: usize) -> Result<Fd, String> {
        let name = self.device_of(which)?;
        self.cdev_of(&name)
    }

    #[track_caller]
    fn cdev_of(&mut self, name: &str) -> Result<Fd, String> {
        let fd = done(self.core.open_cdev(name))?;
        self.opened.push(fd);
        Ok(fd)
    }

    #[track_caller]
    fn bound(&mut self, which: usize, iommufd: Fd) -> Result<Fd, String> {
        let device = self.cdev(which)?;
        done(self.core.bind_iommufd(device, &bind_to(iommufd)))?;
        Ok(device)
    }

    #[track_caller]
    fn attach(&mut self, device: Fd, id: u32) -> Result<u32, String> {
        done(self.core.attach_pt(device, &attach_to(id)))
    }

    /// Two devices of one group; none on a machine without such a group.
    fn pair(&self) -> Option<[String; 2]> {
        let devices = &self.scene.devices;
        devices.iter().find_map(|(group, name)| {
            let mut others = devices.iter().filter(|(of, other)| of == group && other != name);
            others.next().map(|(_, other)| [name.clone(), other.clone()])
        })
    }
}

fn access<C: Core>(stage: &mut Stage<'_, C>) -> Verdict {
    let (Space { iommufd, ioas }, device) = (stage.space()?, stage.cdev(0)?);
    let mut info = super::iommufd::words(&[24, 0, 0, 0, 0, 0]);
    fails(stage.core.device_info(device, &mut info), EINVAL)?;
    fails(stage.core.attach_pt(device, &attach_to(ioas)), EINVAL)?;
    fails(stage.core.detach_pt(device, &DETACH), EINVAL)?;
    fails(stage.core.reset(device), EINVAL)?;
    fails(stage.core.api_version(device), EINVAL)?;
    same(done(stage.core.bind_iommufd(device, &bind_to(iommufd)))?, 2)?;
    done(stage.core.device_info(device, &mut info))?;
    fails(stage.core.api_version(device), ENOTTY)
}

/// No device of the machine has SR-IOV.
fn token<C: Core>(stage: &mut Stage<'_, C>) -> Verdict {
    let (iommufd, device) = (stage.iommufd()?, stage.cdev(0)?);
    let (size, flags) = (BindIommufd::TOKEN_ARGSZ, BindIommufd::TOKEN);
    let with = |argsz, flags| BindIommufd { argsz, flags, ..bind_to(iommufd) };
    let short = if stage.kernel().binds_with_tokens() { EFAULT } else { EINVAL };
    fails(stage.core.bind_iommufd(device, &with(BindIommufd::ARGSZ, flags)), short)?;
    fails(stage.core.bind_iommufd(device, &with(size, flags)), EINVAL)?;
    let unknown = with(size, flags | 2);
    fails(stage.core.bind_iommufd(device, &unknown), EINVAL)?;
    let absent = BindIommufd { iommufd: Fd(1_000_000), ..with(size, flags) };
    fails(stage.core.bind_iommufd(device, &absent), EINVAL)?;
    done(stage.core.bind_iommufd(device, &with(size, 0))).map(|_| ())
}

/// The last page ends at the end of the file, or behind it.
fn pins_files<C: Core>(stage: &mut Stage<'_, C>) -> Verdict {
    if !stage.kernel().maps_files() {
        return Ok(());
    }
    let (space, memory) = (stage.space()?, stage.memory(4)?);
    let device = stage.bound(0, space.iommufd)?;
    let map = |file, start, length| IoasMapFile {
        flags: 7,
        ioas: space.ioas,
        file,
        start,
        length,
        iova: 0,
    };
    for (file, start, length) in [(memory, PAGE, 4 * PAGE), (space.iommufd, 0, PAGE)] {
        let map = map(file, start, length);
        done(stage.core.ioas_map_file(space.iommufd, &map))?;
        fails(stage.core.attach_pt(device, &attach_to(space.ioas)), EINVAL)?;
        same(stage.clear(space)?, length)?;
    }
    stage.attach(device, space.ioas)?;
    for (file, start, length) in [(memory, 4 * PAGE, PAGE), (space.iommufd, 0, PAGE)] {
        let map = map(file, start, length);
        fails(stage.core.ioas_map_file(space.iommufd, &map), EINVAL)?;
    }
    done(stage.core.ioas_map_file(space.iommufd, &map(memory, 0, 4 * PAGE)))?;
    stage.close(memory)?;
    same(stage.clear(space)?, 4 * PAGE)
}

fn bad_binds<C: Core>(stage: &mut Stage<'_, C>) -> Verdict {
    let (iommufd, eventfd, device) = (stage.iommufd()?, stage.eventfd()?, stage.cdev(0)?);
    let good = bind_to(iommufd);
    for (bad, errno) in [
        (BindIommufd { argsz: 15, ..good }, EINVAL),
        (BindIommufd { flags: 2, ..good }, EINVAL),
        (BindIommufd { iommufd: Fd(-1), ..good }, EINVAL),
        (BindIommufd { iommufd: Fd(1_000_000), ..good }, EBADF),
        (BindIommufd { iommufd: eventfd, ..good }, EBADFD),
        (BindIommufd { iommufd: device, ..good }, EBADFD),
    ] {
        fails(stage.core.bind_iommufd(device, &bad), errno)?;
    }
    fails(stage.core.bind_iommufd(iommufd, &good), ENOTTY)?;
    done(stage.core.bind_iommufd(device, &good))?;
    fails(stage.core.bind_iommufd(device, &good), EINVAL)?;
    let again = stage.cdev(0)?;
    fails(stage.core.bind_iommufd(again, &good), EINVAL)
}

fn open_or_bound<C: Core>(stage: &mut Stage<'_, C>) -> Verdict {
    let Ready { container, group } = stage.ready()?;
    let (Space { iommufd, ioas }, device) = (stage.space()?, stage.cdev(0)?);
    fails(stage.core.bind_iommufd(device, &bind_to(iommufd)), EBUSY)?;
    let name = stage.device_of(0)?;
    let opened = stage.device(group, &name)?;
    fails(stage.core.bind_iommufd(opened, &bind_to(iommufd)), EINVAL)?;
    fails(stage.core.attach_pt(opened, &attach_to(ioas)), ENOTTY)?;
    fails(stage.core.detach_pt(opened, &DETACH), ENOTTY)?;
    stage.close(group)?;
    fails(stage.core.bind_iommufd(device, &bind_to(iommufd)), EBUSY)?;
    stage.close(opened)?;
    done(stage.core.bind_iommufd(device, &bind_to(iommufd)))?;
    let number = stage.number(0)?;
    fails(stage.core.open_group(number), EBUSY)?;
    stage.close(device)?;
    stage.group(0)?;
    stage.close(container)
}

fn one_owner<C: Core>(stage: &mut Stage<'_, C>) -> Verdict {
    let Some([first, second]) = stage.pair() else {
        return Ok(());
    };
    let (iommufd, other) = (stage.iommufd()?, stage.iommufd()?);
    let (first, second) = (stage.cdev_of(&first)?, stage.cdev_of(&second)?);
    done(stage.core.bind_iommufd(first, &bind_to(iommufd)))?;
    fails(stage.core.bind_iommufd(second, &bind_to(other)), EPERM)?;
    done(stage.core.bind_iommufd(second, &bind_to(iommufd)))?;
    stage.close(second)?;
    stage.close(first)
}

fn narrows<C: Core>(stage: &mut Stage<'_, C>) -> Verdict {
    let space = stage.space()?;
    let device = stage.bound(0, space.iommufd)?;
    let page_table = stage.attach(device, space.ioas)?;
    same(page_table, 3)?;
    // An end of 2^64 - 1 stands for 2^64.
    let last = |end: u64| if end == u64::MAX { end } else { end.saturating_sub(1) };
    let ranges = &stage.scene.description.iova_ranges;
    let usable: Vec<_> = ranges.iter().map(|range| [range.start, last(range.end)]).collect();
    same(stage.ranges(space)?, (usable, PAGE))?;
    for iova in [0xfee0_0000, u64::MAX - PAGE] {
        let map = stage.area(space, iova, 1);
        fails(stage.core.ioas_map(space.iommufd, &map), EINVAL)?;
    }
    for id in [space.ioas, page_table, 2] {
        fails(stage.core.iommu_destroy(space.iommufd, id), EBUSY)?;
    }
    done(stage.core.detach_pt(device, &DETACH))?;
    done(stage.core.detach_pt(device, &DETACH))?;
    same(stage.ranges(space)?, (vec![[0, u64::MAX]], 1))?;
    fails(stage.core.iommu_destroy(space.iommufd, page_table), ENOENT)?;
    done(stage.core.iommu_destroy(space.iommufd, space.ioas))
}

fn bad_attaches<C: Core>(stage: &mut Stage<'_, C>) -> Verdict {
    let Space { iommufd, ioas } = stage.space()?;
    let device = stage.bound(0, iommufd)?;
    let good = attach_to(ioas);
    for (bad, errno) in [
        (AttachPt { argsz: 11, ..good }, EINVAL),
        (AttachPt { flags: 1, ..good }, EINVAL),
        (AttachPt { id: 9, ..good }, ENOENT),
        (AttachPt { id: 2, ..good }, EINVAL),
    ] {
        fails(stage.core.attach_pt(device, &bad), errno)?;
    }
    fails(stage.core.detach_pt(device, &AttachPt { argsz: 7, ..DETACH }), EINVAL)?;
    fails(stage.core.detach_pt(device, &AttachPt { flags: 1, ..DETACH }), EINVAL)
}

/// A detach of a PASID that is not attached does nothing.
fn pasid<C: Core>(stage: &mut Stage<'_, C>) -> Verdict {
    let Space { iommufd, ioas } = stage.space()?;
    let device = stage.bound(0, iommufd)?;
    let page_table = stage.attach(device, ioas)?;
    let with = |call: AttachPt, more, id| {
        let argsz = call.argsz.saturating_add(more);
        AttachPt { argsz, flags: AttachPt::PASID, id }
    };
    let absent = if stage.kernel().takes_pasids() { ENOENT } else { EINVAL };
    for (bad, errno) in [
        (with(attach_to(ioas), 0, ioas), EINVAL),
        (with(attach_to(ioas), 4, ioas), EINVAL),
        (with(attach_to(ioas), 4, page_table), EINVAL),
        (with(attach_to(ioas), 4, 9), absent),
    ] {
        fails(stage.core.attach_pt(device, &bad), errno)?;
    }
    fails(stage.core.detach_pt(device, &with(DETACH, 0, 0)), EINVAL)?;
    match stage.kernel().takes_pasids() {
        true => done(stage.core.detach_pt(device, &with(DETACH, 4, 0)))?,
        false => fails(stage.core.detach_pt(device, &with(DETACH, 4, 0)), EINVAL)?,
    }
    fails(stage.core.iommu_destroy(iommufd, page_table), EBUSY)
}

fn in_the_way<C: Core>(stage: &mut Stage<'_, C>) -> Verdict {
    let space = stage.space()?;
    let device = stage.bound(0, space.iommufd)?;
    let good = stage.area(space, 0, 1);
    // An IOMMU of 64 bits translates all addresses but the MSI window.
    let ends = stage.scene.description.iova_ranges.iter().map(|range| range.end);
    let behind = ends.max().filter(|end| *end < u64::MAX).unwrap_or(0xfee0_0000);
    for map in [
        IoasMap { iova: 0xfee0_0000, ..good },
        IoasMap { iova: behind, ..good },
        IoasMap { length: 1, ..good },
        IoasMap { user_va: good.user_va.saturating_add(1), ..good },
    ] {
        stage.map(space, &map)?;
        fails(stage.core.attach_pt(device, &attach_to(space.ioas)), EADDRINUSE)?;
        stage.clear(space)?;
    }
    let mut allow = super::iommufd::words(&[24, space.ioas, 1, 0, 0, 0, 0, 0, 0xfee0_0000, 0]);
    done(stage.core.request(space.iommufd, 30, &mut allow))?;
    fails(stage.core.attach_pt(device, &attach_to(space.ioas)), EADDRINUSE)
}

fn pins<C: Core>(stage: &mut Stage<'_, C>) -> Verdict {
    let space = stage.space()?;
    let device = stage.bound(0, space.iommufd)?;
    let good = stage.area(space, 0, 1);
    let absent = good.user_va.saturating_add(WRITABLE).saturating_add(READABLE);
    stage.map(space, &good)?;
    stage.map(space, &IoasMap { iova: PAGE, user_va: absent, ..good })?;
    fails(stage.core.attach_pt(device, &attach_to(space.ioas)), EFAULT)?;
    same(stage.ranges(space)?.1, 1)?;
    stage.clear(space)?;
    stage.map(space, &good)?;
    stage.attach(device, space.ioas)?;
    same(stage.clear(space)?, PAGE)
}

fn needs_memory<C: Core>(stage: &mut Stage<'_, C>) -> Verdict {
    let space = stage.space()?;
    let device = stage.bound(0, space.iommufd)?;
    stage.attach(device, space.ioas)?;
    let good = stage.area(space, 0, 1);
    let readable = good.user_va.saturating_add(WRITABLE);
    fails(stage.core.ioas_map(space.iommufd, &IoasMap { user_va: readable, ..good }), EFAULT)?;
    let absent = readable.saturating_add(READABLE);
    fails(stage.core.ioas_map(space.iommufd, &IoasMap { user_va: absent, ..good }), EFAULT)?;
    let odd = IoasMap { user_va: good.user_va.saturating_add(1), ..good };
    fails(stage.core.ioas_map(space.iommufd, &odd), EINVAL)?;
    stage.map(space, &IoasMap { flags: 5, user_va: readable, ..good })?;
    stage.map(space, &IoasMap { iova: PAGE, ..good }).map(|_| ())
}

fn by_user<C: Core>(stage: &mut Stage<'_, C>) -> Verdict {
    let space = stage.space()?;
    let device = stage.bound(0, space.iommufd)?;
    stage.attach(device, space.ioas)?;
    let pages = |bytes: u64| bytes.checked_div(PAGE).unwrap_or(0);
    let limit = stage.scene.description.locked_memory.unwrap_or(WRITABLE).min(WRITABLE);
    let all = stage.area(space, 0, pages(limit));
    stage.map(space, &all)?;
    let more = stage.area(space, 1 << 30, 1);
    match limit < WRITABLE {
        true => fails(stage.core.ioas_map(space.iommufd, &more), ENOMEM)?,
        false => done(stage.core.ioas_map(space.iommufd, &more)).map(|_| ())?,
    }
    // Without an attached device, nothing is locked.
    done(stage.core.detach_pt(device, &DETACH))?;
    let third = stage.area(space, 2 << 30, 1);
    stage.map(space, &third).map(|_| ())
}

fn moves<C: Core>(stage: &mut Stage<'_, C>) -> Verdict {
    let space = stage.space()?;
    let device = stage.bound(0, space.iommufd)?;
    let other = Space { ioas: done(stage.core.ioas_alloc(space.iommufd, 0))?, ..space };
    let page_table = stage.attach(device, space.ioas)?;
    same(stage.attach(device, space.ioas)?, page_table)?;
    same(stage.attach(device, page_table)?, page_table)?;
    let map = stage.area(other, 0xfee0_0000, 1);
    stage.map(other, &map)?;
    fails(stage.core.attach_pt(device, &attach_to(other.ioas)), EADDRINUSE)?;
    stage.clear(other)?;
    let moved = stage.attach(device, other.ioas)?;
    same(moved != page_table, true)?;
    same((stage.ranges(space)?.1, stage.ranges(other)?.1), (1, PAGE))?;
    done(stage.core.iommu_destroy(space.iommufd, space.ioas))
}

fn shared<C: Core>(stage: &mut Stage<'_, C>) -> Verdict {
    let space = stage.space()?;
    let (first, second) = (stage.bound(0, space.iommufd)?, stage.bound(1, space.iommufd)?);
    let page_table = stage.attach(first, space.ioas)?;
    same(stage.attach(second, space.ioas)?, page_table)?;
    stage.close(first)?;
    same(stage.ranges(space)?.1, PAGE)?;
    stage.close(second)?;
    same(stage.ranges(space)?.1, 1)
}

fn together<C: Core>(stage: &mut Stage<'_, C>) -> Verdict {
    let Some([first, second]) = stage.pair() else {
        return Ok(());
    };
    let space = stage.space()?;
    let other = Space { ioas: done(stage.core.ioas_alloc(space.iommufd, 0))?, ..space };
    let (first, second) = (stage.cdev_of(&first)?, stage.cdev_of(&second)?);
    for device in [first, second] {
        done(stage.core.bind_iommufd(device, &bind_to(space.iommufd)))?;
    }
    let page_table = stage.attach(first, space.ioas)?;
    fails(stage.core.attach_pt(second, &attach_to(other.ioas)), EINVAL)?;
    same(stage.attach(second, space.ioas)?, page_table)?;
    stage.attach(second, other.ioas)?;
    same((stage.ranges(space)?.1, stage.ranges(other)?.1), (1, PAGE))?;
    done(stage.core.detach_pt(first, &DETACH))?;
    same(stage.ranges(other)?.1, PAGE)?;
    done(stage.core.detach_pt(second, &DETACH))?;
    same(stage.ranges(other)?.1, 1)
}

fn kept<C: Core>(stage: &mut Stage<'_, C>) -> Verdict {
    let space = stage.space()?;
    let device = stage.bound(0, space.iommufd)?;
    let page_table = stage.attach(device, space.ioas)?;
    stage.close(space.iommufd)?;
    same(stage.attach(device, space.ioas)?, page_table)?;
    stage.close(device)?;
    stage.group(0).map(|_| ())
}

fn link<C: Core>(stage: &mut Stage<'_, C>) -> Verdict {
    let (iommufd, kvm, device) = (stage.iommufd()?, stage.kvm()?, stage.cdev(0)?);
    done(stage.core.link(kvm, device))?;
    fails(stage.core.link(kvm, device), EEXIST)?;
    fails(stage.core.link(kvm, iommufd), EINVAL)?;
    done(stage.core.bind_iommufd(device, &bind_to(iommufd)))?;
    done(stage.core.unlink(kvm, device))?;
    fails(stage.core.unlink(kvm, device), ENOENT)?;
    done(stage.core.link(kvm, device))?;
    stage.close(device)?;
    let number = stage.number(0)?;
    fails(stage.core.open_group(number), EBUSY)?;
    stage.close(kvm)?;
    stage.group(0).map(|_| ())
}

/// The first device is on a root bus, which cannot be reset.
fn hot_reset<C: Core>(stage: &mut Stage<'_, C>) -> Verdict {
    let iommufd = stage.iommufd()?;
    let device = stage.bound(0, iommufd)?;
    fails(stage.core.hot_reset(device, &[iommufd]), EINVAL)?;
    fails(stage.core.hot_reset(device, &[]), ENODEV)?;
    stage.close(device)?;
    let Ready { group, .. } = stage.ready()?;
    let name = stage.device_of(0)?;
    let device = stage.device(group, &name)?;
    fails(stage.core.hot_reset(device, &[]), EINVAL)?;
    fails(stage.core.hot_reset(device, &[group]), ENODEV)
}

fn interrupts<C: Core>(stage: &mut Stage<'_, C>) -> Verdict {
    let (iommufd, eventfd) = (stage.iommufd()?, stage.eventfd()?);
    let device = stage.bound(0, iommufd)?;
    let bind = IrqSet::new(4 | 32, 2, 0, 1, IrqData::Eventfds(vec![eventfd]));
    done(stage.core.set_irqs(device, &bind))?;
    done(stage.core.set_irqs(device, &IrqSet::new(1 | 32, 2, 0, 1, IrqData::None)))?;
    same(done(stage.core.signals(eventfd))?, 1)
}
