//! The wrapper of a program: it runs the program with the libraries of its own folder.

use std::{
    fmt::Write as _,
    fs,
    os::unix::fs::{PermissionsExt as _, symlink},
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, bail};

use super::{super::elf::is_static, packages::Program};

/// Part of the recipe: to be counted up when wrappers are written in another way.
pub(super) const FORMAT: u32 = 2;

/// Where a package lies while its wrappers are written, and where they find it later.
pub(super) struct Folders<'a> {
    pub(super) files: &'a Path,
    pub(super) root: &'a Path,
    pub(super) bin: &'a Path,
}

/// Writes the wrapper of `program` into the folder `bin`. A static program needs none, and gets a link: the lab puts it
/// into containers.
pub(super) fn write(folders: &Folders<'_>, program: &Program, bin: &Path) -> Result<()> {
    let path = find(folders.files, program.file.unwrap_or(program.name))?;
    let wrapper = bin.join(program.name);
    let content =
        fs::read(folders.files.join(&path)).with_context(|| format!("reading {}", path.display()))?;
    let is_script = content.starts_with(b"#!");
    if !is_script && is_static(&folders.files.join(&path)) {
        return symlink(folders.root.join(&path), &wrapper).context("linking it");
    }
    let first = content.split(|byte| *byte == b'\n').next().unwrap_or_default();
    let first = String::from_utf8_lossy(first);
    let text = text(folders, program, &path, is_script.then_some(&*first))?;
    fs::write(&wrapper, text).with_context(|| format!("writing {}", wrapper.display()))?;
    fs::set_permissions(&wrapper, fs::Permissions::from_mode(0o755)).context("making it executable")
}

/// The loader is called by its path. With `LD_LIBRARY_PATH` the program's children would get the libraries too, and the
/// machine's loader would meet a C library that is not its own.
fn text(folders: &Folders<'_>, program: &Program, path: &Path, script: Option<&str>) -> Result<String> {
    let loader = loader(folders.files)?;
    let lib = folders.root.join(loader.parent().context("the loader lies in no folder")?);
    let fill = |text: &str| {
        [("{root}", folders.root), ("{lib}", &lib), ("{bin}", folders.bin)]
            .iter()
            .fold(text.to_owned(), |text, (name, path)| text.replace(name, &path.to_string_lossy()))
    };
    let libraries = ["{lib}", "{root}/usr/lib"].iter().chain(program.libraries).map(|folder| fill(folder));
    let mut words = vec!["--library-path".to_owned(), libraries.collect::<Vec<_>>().join(":")];
    let of_root = |path: &Path| folders.root.join(path).to_string_lossy().into_owned();
    if let Some(line) = script {
        if !line.contains("perl") {
            bail!("{} is a script for `{line}`, and this knows Perl only", path.display());
        }
        words.push(of_root(&find(folders.files, "perl")?));
        words.extend(perl_folders(folders.files).iter().map(|folder| format!("-I{}", of_root(folder))));
    }
    words.push(of_root(path));
    words.extend(program.arguments.iter().map(|argument| fill(argument)));
    let mut text = "#!/bin/sh\n# Made by `cargo xtask setup`.\n".to_owned();
    for (name, value) in program.environment {
        let _ = writeln!(text, "export {name}={}", quoted(&fill(value)));
    }
    let words: Vec<_> = words.iter().map(|word| quoted(word)).collect();
    // A program that runs itself, as make does, has to run its wrapper. A program of many applets would read the
    // wrapper's name as the applet's, and take our first argument for the user's.
    let has_own_name = script.is_none() && program.file.is_none();
    let name =
        if has_own_name && knows_argv0(&folders.files.join(&loader))? { " --argv0 \"$0\"" } else { "" };
    let loader = quoted(&folders.root.join(&loader).to_string_lossy());
    let _ = writeln!(text, "exec {loader}{name} {} \"$@\"", words.join(" "));
    Ok(text)
}

/// The loader of glibc 2.33 and later has this option.
fn knows_argv0(loader: &Path) -> Result<bool> {
    const OPTION: &[u8] = b"--argv0";
    let content = fs::read(loader).with_context(|| format!("reading {}", loader.display()))?;
    Ok(content.windows(OPTION.len()).any(|window| window == OPTION))
}

/// The file of a program, from the top of the root.
fn find(files: &Path, name: &str) -> Result<PathBuf> {
    let found = ["usr/bin", "usr/sbin"].iter().map(|folder| Path::new(folder).join(name));
    let found = found.filter_map(|path| resolve(files, path)).find(|path| files.join(path).is_file());
    found.with_context(|| format!("the package has no program {name}"))
}

/// Follows links as they would lead in the root: absolute ones start at its top.
fn resolve(files: &Path, mut path: PathBuf) -> Option<PathBuf> {
    const LINKS: usize = 16;
    for _ in 0..LINKS {
        match fs::read_link(files.join(&path)) {
            Ok(target) => {
                path = match target.strip_prefix("/") {
                    Ok(absolute) => absolute.to_path_buf(),
                    Err(_) => path.parent()?.join(target),
                };
            }
            Err(_) => return Some(path),
        }
    }
    None
}

/// The dynamic loader, from the top of the root. Its link in /lib64 is absolute, and leads to the machine's.
fn loader(files: &Path) -> Result<PathBuf> {
    let usr_lib = Path::new("usr/lib");
    let folders = list(files, usr_lib).into_iter().chain([usr_lib.to_path_buf(), "usr/lib64".into()]);
    let found = folders.flat_map(|folder| list(files, &folder)).find(|path| {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        name.starts_with("ld-linux") && files.join(path).symlink_metadata().is_ok_and(|meta| meta.is_file())
    });
    found.context("the package's dependencies have no dynamic loader")
}

/// Where the root's Perl finds its modules; it was built to find them in the machine's /usr.
fn perl_folders(files: &Path) -> Vec<PathBuf> {
    let architectures = list(files, Path::new("usr/lib"));
    let mut folders: Vec<PathBuf> = Vec::new();
    for architecture in architectures {
        folders.extend(list(files, &architecture.join("perl5")));
        folders.extend(list(files, &architecture.join("perl")));
        folders.push(architecture.join("perl-base"));
    }
    folders.push("usr/share/perl5".into());
    folders.extend(list(files, Path::new("usr/share/perl")));
    folders.retain(|folder| files.join(folder).is_dir());
    folders
}

/// What is in a folder of the root, sorted; nothing where there is no such folder.
fn list(files: &Path, folder: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(files.join(folder)).into_iter().flatten().flatten();
    let mut names: Vec<_> = entries.map(|entry| folder.join(entry.file_name())).collect();
    names.sort();
    names
}

/// A word as the shell reads it back.
fn quoted(word: &str) -> String {
    format!("'{}'", word.replace('\'', r"'\''"))
}

#[cfg(test)]
mod tests {
    use std::env;

    use super::{super::packages::of, *};

    #[test]
    fn a_program_is_called_by_its_wrappers_name() {
        let folder = env::temp_dir().join(format!("wsl-mirror-wrapper-{}", std::process::id()));
        let files = folder.join("root");
        let loader = files.join("usr/lib/x/ld-linux-x86-64.so.2");
        for folder in ["usr/lib/x", "usr/bin"] {
            fs::create_dir_all(files.join(folder)).unwrap();
        }
        for program in ["make", "xtables-nft-multi"] {
            fs::write(files.join("usr/bin").join(program), b"\x7fELF /lib64/ld-linux-x86-64.so.2").unwrap();
        }
        let folders = Folders { files: &files, root: &files, bin: &folder };
        let wrapper = |loader_text: &str, package: &str| {
            fs::write(&loader, loader_text).unwrap();
            let program = &of(package).unwrap().programs[0];
            write(&folders, program, &folder).unwrap();
            fs::read_to_string(folder.join(program.name)).unwrap()
        };
        assert!(wrapper("usage: --argv0", "make").contains(".so.2' --argv0 \"$0\" '--library-path'"));
        assert!(!wrapper("glibc 2.32", "make").contains("--argv0"));
        assert!(!wrapper("usage: --argv0", "iptables").contains("--argv0"));
        fs::remove_dir_all(&folder).unwrap();
    }
}
