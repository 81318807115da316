//! A kernel's modules as depmod and the kernel's build list them in `modules.dep` and
//! `modules.builtin`: which there are, and which must be loaded before which. The lists are those of
//! whoever made the kernel: a loop in them is no loop here, and a path that leads out of the modules'
//! directory is refused.

use std::collections::{HashMap, HashSet};
use std::path::{Component, Path};

use thiserror::Error;

/// What a kernel has, as a module or built in.
#[derive(Debug, Default)]
pub struct ModuleIndex {
    /// Name to its path and its dependencies' paths, all relative to the modules' directory.
    files: HashMap<String, (String, Vec<String>)>,
    builtin: HashSet<String>,
}

/// A list names a file outside of the modules' directory.
#[derive(Debug, Error, PartialEq, Eq)]
#[error("{list}, line {line}: `{path}` does not lie in that directory: make it anew with depmod")]
pub struct Outside {
    /// The list's file name.
    pub list: &'static str,
    /// Counted from 1.
    pub line: usize,
    /// The path as it stands there.
    pub path: String,
}

impl ModuleIndex {
    /// Reads the text of `modules.dep` and of `modules.builtin`.
    ///
    /// # Errors
    /// When one names a file elsewhere.
    pub fn parse(dep: &str, builtin: &str) -> Result<Self, Outside> {
        let check = |list: &'static str, line: usize, path: &str| match is_beneath(path) {
            true => Ok(()),
            false => Err(Outside { list, line: line + 1, path: path.to_owned() }),
        };
        let mut files = HashMap::new();
        for (n, line) in dep.lines().enumerate() {
            let Some((path, dependencies)) = line.split_once(':') else { continue };
            let dependencies: Vec<_> = dependencies.split_whitespace().map(str::to_owned).collect();
            for path in dependencies.iter().map(String::as_str).chain([path]) {
                check("modules.dep", n, path)?;
            }
            files.insert(module_name(path), (path.to_owned(), dependencies));
        }
        let mut names = HashSet::new();
        for (n, path) in builtin.lines().enumerate().filter(|(_, path)| !path.is_empty()) {
            check("modules.builtin", n, path)?;
            names.insert(module_name(path));
        }
        Ok(Self { files, builtin: names })
    }

    /// Whether the kernel has `name`, as a module or built in.
    pub fn has(&self, name: &str) -> bool {
        let name = module_name(name);
        self.files.contains_key(&name) || self.builtin.contains(&name)
    }

    /// Whether the kernel has `name` as a module, and not built in.
    pub fn is_loadable(&self, name: &str) -> bool {
        let name = module_name(name);
        self.files.contains_key(&name) && !self.builtin.contains(&name)
    }

    /// `wanted`, as far as it is there, and all that it needs, in an order in which it can be loaded:
    /// name and path. What is built in needs no file.
    pub fn closure(&self, wanted: &[&str]) -> Vec<(String, &str)> {
        let mut order = Vec::new();
        let mut seen = HashSet::new();
        for name in wanted {
            self.visit(module_name(name), &mut seen, &mut order);
        }
        order
    }

    fn visit<'a>(
        &'a self,
        name: String,
        seen: &mut HashSet<String>,
        order: &mut Vec<(String, &'a str)>,
    ) {
        let Some((path, dependencies)) = self.files.get(&name) else { return };
        if self.builtin.contains(&name) || !seen.insert(name.clone()) {
            return;
        }
        // depmod lists all of them, those of dependencies too, what is needed first at the end.
        for dependency in dependencies.iter().rev() {
            let dependency = module_name(dependency);
            if let Some((path, _)) = self.files.get(&dependency)
                && !self.builtin.contains(&dependency)
                && seen.insert(dependency.clone())
            {
                order.push((dependency, path));
            }
        }
        order.push((name, path));
    }
}

/// `kernel/drivers/virtio/virtio-mmio.ko.xz` and `virtio_mmio` are the same module.
pub fn module_name(path: &str) -> String {
    let file = path.rsplit('/').next().unwrap_or(path);
    file.split('.').next().unwrap_or(file).replace('-', "_")
}

/// Whether `path` consists of names only, with nothing that leads upwards or begins at the root.
fn is_beneath(path: &str) -> bool {
    let mut parts = Path::new(path).components().peekable();
    parts.peek().is_some() && parts.all(|part| matches!(part, Component::Normal(_)))
}

#[cfg(test)]
mod tests {
    use super::*;

    const DEP: &str = "kernel/v/blk.ko: kernel/v/virtio_ring.ko kernel/v/virtio.ko\n\
                       kernel/v/virtio_ring.ko: kernel/v/virtio.ko\n\
                       kernel/v/virtio.ko:\n\
                       kernel/l/a.ko: kernel/l/b.ko\n\
                       kernel/l/b.ko: kernel/l/a.ko\n\
                       kernel/n/net-card.ko.xz: kernel/v/virtio.ko\n";

    #[test]
    fn dependencies_come_first_and_once_and_a_loop_ends() {
        let index = ModuleIndex::parse(DEP, "kernel/fs/ext4/ext4.ko\n").unwrap();
        let names = |wanted: &[&str]| -> Vec<String> {
            index.closure(wanted).into_iter().map(|(name, _)| name).collect()
        };
        assert_eq!(
            names(&["blk", "net_card", "virtio"]),
            ["virtio", "virtio_ring", "blk", "net_card"]
        );
        assert_eq!(names(&["ext4", "nobody"]), [""; 0]);
        assert_eq!(names(&["a"]), ["b", "a"]);
        assert!(index.has("ext4") && index.has("net-card") && !index.has("nobody"));
        assert!(index.is_loadable("net-card") && !index.is_loadable("ext4"));
        assert_eq!(index.closure(&["net_card"])[1].1, "kernel/n/net-card.ko.xz");
    }

    #[test]
    fn a_path_out_of_the_directory_is_refused_by_list_and_line() {
        let refusal = |dep: &str, builtin: &str| ModuleIndex::parse(dep, builtin).unwrap_err();
        for path in ["../secret.ko", "/etc/secret.ko", "k/../../secret.ko", "..", "/"] {
            for dep in [format!("a.ko:\n{path}: a.ko\n"), format!("a.ko:\nb.ko: a.ko {path}\n")] {
                let outside = refusal(&dep, "");
                assert_eq!((outside.list, outside.line), ("modules.dep", 2), "{outside}");
                assert_eq!(outside.path, path);
            }
            let outside = refusal("", &format!("a.ko\n\n{path}\n"));
            assert_eq!((outside.list, outside.line), ("modules.builtin", 3), "{outside}");
        }
        assert_eq!(refusal(": a.ko", "").path, "", "an empty path is no file's");
    }
}
