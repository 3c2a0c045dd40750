//! Containers, groups, and the files that keep them in use.

use libc::{EBADF, EBUSY, EEXIST, EINVAL, ENODEV, ENOENT, ENOTTY, EPERM};
use vfio_model::{Driver, Fd};

use super::{Check, Ready, Stage, Verdict, done, fails, same};
use crate::Core;

pub fn checks<C: Core>() -> Vec<Check<C>> {
    vec![
        ("a container reports version and extensions", extensions),
        ("an IOMMU is set once, with a group, of a known type", set_iommu),
        ("a group is opened once", open_once),
        ("GET_STATUS reports flags and checks argsz", status),
        ("a container is set and unset", membership),
        ("SET_CONTAINER accepts only containers", not_a_container),
        ("an ioctl of another kind of file is refused", foreign),
        ("GET_DEVICE_FD looks the name up in the group", names),
        ("a device is not opened before the IOMMU is set", not_ready),
        ("a device keeps its group in the container", kept_by_device),
        ("files are closed in every order", orders),
        ("a container of two groups keeps its IOMMU with one", two_groups),
        ("KVM links a group once", link),
        ("a link with KVM keeps the group in use", kept_by_kvm),
        ("a group that is not viable is refused", not_viable),
    ]
}

const BAD: Fd = Fd(1_000_000);

fn extensions<C: Core>(stage: &mut Stage<'_, C>) -> Verdict {
    let container = stage.container()?;
    let flags = u32::from(stage.kernel().has_unmap_flags());
    same(done(stage.core.api_version(container))?, 0)?;
    for (extension, there) in
        [(0, 0), (1, 1), (2, 0), (3, 1), (7, 0), (9, flags), (10, 0), (1 << 32 | 3, 0)]
    {
        same(
            (extension, done(stage.core.check_extension(container, extension))?),
            (extension, there),
        )?;
    }
    let Ready { container, .. } = stage.ready()?;
    same(done(stage.core.check_extension(container, 10))?, flags)
}

fn set_iommu<C: Core>(stage: &mut Stage<'_, C>) -> Verdict {
    let (container, group) = (stage.container()?, stage.group(0)?);
    fails(stage.core.set_iommu(container, 3), EINVAL)?;
    done(stage.core.set_container(group, container))?;
    // Type1 refuses an extension that it has, and that is no type.
    let extension = if stage.kernel().has_unmap_flags() { EINVAL } else { ENODEV };
    for (kind, errno) in
        [(0, ENODEV), (2, ENODEV), (8, ENODEV), (9, extension), (10, ENODEV), (1 << 32, ENODEV)]
    {
        fails(stage.core.set_iommu(container, kind), errno)?;
    }
    done(stage.core.set_iommu(container, 1))?;
    fails(stage.core.set_iommu(container, 1), EINVAL)?;
    done(stage.core.unset_container(group))?;
    fails(stage.core.set_iommu(container, 3), EINVAL)
}

fn open_once<C: Core>(stage: &mut Stage<'_, C>) -> Verdict {
    let number = stage.number(0)?;
    let group = stage.group(0)?;
    fails(stage.core.open_group(number), EBUSY)?;
    stage.close(group)?;
    stage.group(0)?;
    fails(stage.core.open_group(9999), ENOENT)
}

fn status<C: Core>(stage: &mut Stage<'_, C>) -> Verdict {
    let (container, group) = (stage.container()?, stage.group(0)?);
    same(done(stage.core.group_status(group, 8))?, 1)?;
    done(stage.core.set_container(group, container))?;
    same(done(stage.core.group_status(group, 100))?, 3)?;
    fails(stage.core.group_status(group, 7), EINVAL)
}

fn membership<C: Core>(stage: &mut Stage<'_, C>) -> Verdict {
    let (container, group) = (stage.container()?, stage.group(0)?);
    fails(stage.core.unset_container(group), EINVAL)?;
    done(stage.core.set_container(group, container))?;
    fails(stage.core.set_container(group, container), EINVAL)?;
    done(stage.core.unset_container(group))?;
    fails(stage.core.unset_container(group), EINVAL)?;
    done(stage.core.set_container(group, container))
}

fn not_a_container<C: Core>(stage: &mut Stage<'_, C>) -> Verdict {
    let (group, eventfd) = (stage.group(0)?, stage.eventfd()?);
    let other = stage.kernel().not_a_container();
    fails(stage.core.set_container(group, group), other)?;
    fails(stage.core.set_container(group, eventfd), other)?;
    let first = if stage.kernel().looks_fd_up_first() { EBADF } else { EINVAL };
    fails(stage.core.set_container(group, BAD), EBADF)?;
    fails(stage.core.set_container(group, Fd(-1)), first)?;
    let container = stage.container()?;
    done(stage.core.set_container(group, container))?;
    fails(stage.core.set_container(group, BAD), first)?;
    fails(stage.core.set_container(group, eventfd), EINVAL)
}

fn foreign<C: Core>(stage: &mut Stage<'_, C>) -> Verdict {
    let (container, group, eventfd) = (stage.container()?, stage.group(0)?, stage.eventfd()?);
    fails(stage.core.group_status(container, 8), EINVAL)?;
    fails(stage.core.unset_container(eventfd), ENOTTY)?;
    fails(stage.core.api_version(group), ENOTTY)?;
    fails(stage.core.reset(group), ENOTTY)?;
    done(stage.core.set_container(group, container))?;
    done(stage.core.set_iommu(container, 3))?;
    fails(stage.core.group_status(container, 8), ENOTTY)?;
    fails(stage.core.reset(container), ENOTTY)?;
    fails(stage.core.api_version(BAD), EBADF)
}

fn names<C: Core>(stage: &mut Stage<'_, C>) -> Verdict {
    let Ready { group, .. } = stage.ready()?;
    let (own, other) = (stage.device_of(0)?, stage.device_of(1)?);
    // Before names had options, such a name was that of no device.
    let has_options = stage.kernel().has_vf_tokens();
    let options = if has_options { EINVAL } else { ENODEV };
    for (name, errno) in [
        (String::new(), ENODEV),
        (other, ENODEV),
        (format!("{own}0"), ENODEV),
        (format!("{own} x"), options),
        (format!("{own} vf_token="), options),
        // The device has no SR-IOV, so it takes no token (vfio_pci_validate_vf_token).
        (format!("{own} vf_token=bd8d9d2b-5a5f-4f5a-a211-f591514ba1f3"), options),
    ] {
        fails(stage.core.open_device(group, &name), errno)?;
    }
    let spaces = format!("{own}  ");
    match has_options {
        true => stage.device(group, &spaces).map(drop)?,
        false => fails(stage.core.open_device(group, &spaces), ENODEV)?,
    }
    stage.device(group, &own).map(|_| ())
}

fn not_ready<C: Core>(stage: &mut Stage<'_, C>) -> Verdict {
    let (container, group) = (stage.container()?, stage.group(0)?);
    let name = stage.device_of(0)?;
    fails(stage.core.open_device(group, &name), EINVAL)?;
    let unknown = if stage.kernel().looks_names_up_first() { ENODEV } else { EINVAL };
    fails(stage.core.open_device(group, "nothing"), unknown)?;
    done(stage.core.set_container(group, container))?;
    fails(stage.core.open_device(group, &name), EINVAL)?;
    done(stage.core.set_iommu(container, 3))?;
    stage.device(group, &name).map(|_| ())
}

fn kept_by_device<C: Core>(stage: &mut Stage<'_, C>) -> Verdict {
    let Ready { group, .. } = stage.ready()?;
    let name = stage.device_of(0)?;
    let (one, two) = (stage.device(group, &name)?, stage.device(group, &name)?);
    fails(stage.core.unset_container(group), EBUSY)?;
    stage.close(one)?;
    fails(stage.core.unset_container(group), EBUSY)?;
    stage.close(two)?;
    done(stage.core.unset_container(group))
}

fn orders<C: Core>(stage: &mut Stage<'_, C>) -> Verdict {
    let (number, name) = (stage.number(0)?, stage.device_of(0)?);
    for order in [[0, 1, 2], [0, 2, 1], [1, 0, 2], [1, 2, 0], [2, 0, 1], [2, 1, 0]] {
        let Ready { container, group } = stage.ready()?;
        let device = stage.device(group, &name)?;
        let fds = [container, group, device];
        for which in order {
            let is_used = stage.opened.iter().any(|fd| *fd == group || *fd == device);
            let again = stage.core.open_group(number);
            same(again.is_err(), is_used)?;
            if let Ok(again) = again {
                done(stage.core.close(again))?;
            }
            stage.close(fds.into_iter().nth(which).unwrap_or(BAD))?;
        }
    }
    Ok(())
}

fn two_groups<C: Core>(stage: &mut Stage<'_, C>) -> Verdict {
    let Ready { container, group } = stage.ready()?;
    let second = stage.group(1)?;
    done(stage.core.set_container(second, container))?;
    done(stage.core.unset_container(group))?;
    fails(stage.core.set_iommu(container, 3), EINVAL)?;
    let name = stage.device_of(1)?;
    let device = stage.device(second, &name)?;
    stage.close(device)?;
    stage.close(second)?;
    same(done(stage.core.check_extension(container, 10))?, 0)
}

fn link<C: Core>(stage: &mut Stage<'_, C>) -> Verdict {
    let (kvm, container, group) = (stage.kvm()?, stage.container()?, stage.group(0)?);
    fails(stage.core.link(kvm, BAD), EBADF)?;
    fails(stage.core.link(kvm, container), EINVAL)?;
    fails(stage.core.link(group, group), ENOTTY)?;
    fails(stage.core.unlink(kvm, group), ENOENT)?;
    if !stage.kernel().links_files() {
        fails(stage.core.link(kvm, group), EINVAL)?;
        done(stage.core.set_container(group, container))?;
        fails(stage.core.link(kvm, group), EINVAL)?;
        done(stage.core.set_iommu(container, 3))?;
    }
    done(stage.core.link(kvm, group))?;
    fails(stage.core.link(kvm, group), EEXIST)?;
    done(stage.core.unlink(kvm, group))?;
    fails(stage.core.unlink(kvm, group), ENOENT)
}

fn kept_by_kvm<C: Core>(stage: &mut Stage<'_, C>) -> Verdict {
    let number = stage.number(0)?;
    let (kvm, Ready { group, .. }) = (stage.kvm()?, stage.ready()?);
    done(stage.core.link(kvm, group))?;
    match stage.kernel().links_files() {
        true => done(stage.core.unset_container(group))?,
        false => fails(stage.core.unset_container(group), EBUSY)?,
    }
    stage.close(group)?;
    fails(stage.core.open_group(number), EBUSY)?;
    stage.close(kvm)?;
    stage.group(0).map(|_| ())
}

/// Checks only machines with such a group.
fn not_viable<C: Core>(stage: &mut Stage<'_, C>) -> Verdict {
    let description = &stage.scene.description;
    let is_mixed = |group: &u32| description.has_driver(*group, Driver::Host);
    let Some(number) = stage.scene.groups.iter().position(is_mixed) else {
        return Ok(());
    };
    let (container, group) = (stage.container()?, stage.group(number)?);
    same(done(stage.core.group_status(group, 8))?, 0)?;
    if stage.kernel().claims_groups() {
        return fails(stage.core.set_container(group, container), EPERM);
    }
    done(stage.core.set_container(group, container))?;
    same(done(stage.core.group_status(group, 8))?, 2)?;
    done(stage.core.set_iommu(container, 3))?;
    let name = stage.device_of(number)?;
    fails(stage.core.open_device(group, &name), EINVAL)
}
