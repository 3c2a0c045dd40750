//! Dependencies of kernel modules, from `modules.dep`.

use crate::Error;

/// The paths of the modules `wanted` and of their dependencies, each once, in load order. Modules
/// that `modules.builtin` lists are left out.
pub fn load_order(
    modules_dep: &str,
    modules_builtin: &str,
    wanted: &[&str],
) -> Result<Vec<String>, Error> {
    let is_module = |name: &&&str| !modules_builtin.lines().any(|path| module_name(path) == **name);
    let mut order: Vec<String> = Vec::new();
    for name in wanted.iter().filter(is_module) {
        let line = modules_dep.lines().find(|line| names(line, name));
        let line = line.ok_or_else(|| Error::NoModule((*name).to_owned()))?;
        for path in chain(line) {
            if !order.iter().any(|known| known == path) {
                order.push(path.to_owned());
            }
        }
    }
    Ok(order)
}

/// The load order of one line of `modules.dep`. A line is `module: dependencies`, with all
/// dependencies and the nearest first (depmod(8)), so the reverse order can be loaded.
fn chain(line: &str) -> impl Iterator<Item = &str> {
    let (module, dependencies) = line.split_once(':').unwrap_or((line, ""));
    dependencies.split_whitespace().rev().chain([module])
}

fn names(line: &str, wanted: &str) -> bool {
    line.split_once(':').is_some_and(|(path, _)| module_name(path) == wanted.replace('-', "_"))
}

/// The name of the module at `path`: `kernel/arch/x86/kvm/kvm-amd.ko.xz` is `kvm_amd`. In names of
/// modules, `-` and `_` are equal.
fn module_name(path: &str) -> String {
    let file = path.rsplit('/').next().unwrap_or(path);
    file.split('.').next().unwrap_or(file).replace('-', "_")
}

#[cfg(test)]
mod tests {
    use super::*;

    const DEP: &str = "\
kernel/virt/lib/irqbypass.ko.xz:
kernel/arch/x86/kvm/kvm.ko.xz: kernel/virt/lib/irqbypass.ko.xz
kernel/arch/x86/kvm/kvm-amd.ko.xz: kernel/drivers/crypto/ccp/ccp.ko.xz kernel/arch/x86/kvm/kvm.ko.xz kernel/virt/lib/irqbypass.ko.xz
kernel/drivers/vfio/vfio.ko.xz:
kernel/drivers/vfio/pci/vfio-pci-core.ko.xz: kernel/drivers/vfio/vfio.ko.xz kernel/virt/lib/irqbypass.ko.xz
kernel/drivers/nvme/host/nvme-core.ko:
kernel/drivers/nvme/host/nvme.ko: kernel/drivers/nvme/host/nvme-core.ko
";

    #[test]
    fn loads_dependencies_first_and_once() {
        let order = load_order(
            DEP,
            "kernel/drivers/char/virtio_console.ko\n",
            &["kvm_amd", "vfio-pci-core"],
        )
        .unwrap();
        let names: Vec<_> = order.iter().map(|path| module_name(path)).collect();
        assert_eq!(names, ["irqbypass", "kvm", "ccp", "kvm_amd", "vfio", "vfio_pci_core"]);
    }

    #[test]
    fn finds_uncompressed_modules() {
        let order = load_order(DEP, "kernel/drivers/char/virtio_console.ko\n", &["nvme"]).unwrap();
        assert_eq!(
            order,
            ["kernel/drivers/nvme/host/nvme-core.ko", "kernel/drivers/nvme/host/nvme.ko"]
        );
    }

    #[test]
    fn loads_no_built_in_module() {
        let builtin = "kernel/drivers/char/virtio_console.ko\n";
        assert_eq!(load_order(DEP, builtin, &["virtio_console"]).unwrap(), Vec::<String>::new());
    }

    #[test]
    fn error_names_a_missing_module() {
        let error = load_order(DEP, "kernel/drivers/char/virtio_console.ko\n", &["e1000"])
            .unwrap_err()
            .to_string();
        assert!(error.contains("e1000"), "{error}");
    }
}
