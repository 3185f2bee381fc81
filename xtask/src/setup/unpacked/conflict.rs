//! A machine in a folder, on which apt would have to remove a package to install qemu.

use std::{
    env, fs,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    process::Command,
};

use wsl_mirror_toolchain::{Compiler, Linker, Toolchain, Version};

use super::{
    super::{
        apt::{Apt, Lists},
        machine::Machine,
        needs::{Tool, VM},
        perform::perform,
        plan::{Plan, Step, plan},
        programs::program,
        state::State,
        update_lists,
    },
    bins,
    packages::{PACKAGES, of},
};

const QEMU: Tool = VM[0];
/// The version from elsewhere.
const INSTALLED: &str = "1:10.0.2+ds-2~bpo12+1";
const ARCHIVED: &str = "1:7.2+dfsg-7";

/// An archive of packages, and an apt that knows it and nothing else.
struct Fixture {
    folder: PathBuf,
    machine: Machine,
}

impl Fixture {
    fn new(name: &str) -> Self {
        let folder = env::temp_dir().join(format!("wsl-mirror-{name}-{}", std::process::id()));
        let _ = fs::remove_dir_all(&folder);
        for part in ["archive", "var/lib/apt/lists/partial", "var/cache/apt/archives/partial", "cache"] {
            fs::create_dir_all(folder.join(part)).unwrap();
        }
        let at = folder.display();
        let sources = folder.join("sources.list");
        fs::write(&sources, format!("deb [trusted=yes] file:{at}/archive ./\n")).unwrap();
        let config = folder.join("apt.conf");
        fs::write(
            &config,
            format!(
                "Dir \"{at}/\";\nDir::State::status \"{at}/status\";\nDir::Etc::SourceList \"{}\";\n\
                 Dir::Etc::SourceParts \"-\";\nAPT::Sandbox::User \"root\";\n",
                sources.display()
            ),
        )
        .unwrap();
        let installed = format!(
            "Package: qemu-utils\nStatus: install ok installed\nVersion: {INSTALLED}\nArchitecture: all\n\
             Maintainer: none <none@example.org>\nDescription: from elsewhere\n"
        );
        fs::write(folder.join("status"), installed).unwrap();
        let machine = Machine { apt_config: Some(config), unpacked: Some(folder.join("cache/unpacked")) };
        Self { folder, machine }
    }

    /// Puts a package into the archive; `fill` puts its files into a folder.
    fn archive(&self, name: &str, relations: &str, fill: impl FnOnce(&Path)) {
        let root = self.folder.join("build").join(name);
        fs::create_dir_all(root.join("DEBIAN")).unwrap();
        fill(&root);
        let control = format!(
            "Package: {name}\nVersion: {ARCHIVED}\nArchitecture: all\nMaintainer: none <none@example.org>\n\
             {relations}Description: made by a test\n"
        );
        fs::write(root.join("DEBIAN/control"), &control).unwrap();
        let deb = self.folder.join("archive").join(format!("{name}.deb"));
        output(Command::new("dpkg-deb").args(["--root-owner-group", "--build"]).arg(&root).arg(&deb));
        let sum = output(Command::new("sha256sum").arg(&deb));
        let list = self.folder.join("archive/Packages");
        let before = fs::read_to_string(&list).unwrap_or_default();
        let entry = format!(
            "{control}Filename: ./{name}.deb\nSize: {}\nSHA256: {}\n\n",
            deb.metadata().unwrap().len(),
            sum.split_whitespace().next().unwrap()
        );
        fs::write(list, before + &entry).unwrap();
    }

    /// The packages of qemu as Debian has them, with a program that prints its arguments as qemu.
    fn archive_qemu(&self) {
        self.archive("qemu-utils", "", |_| {});
        self.archive("qemu-system-common", "Breaks: qemu-utils (>> 1:8)\n", |_| {});
        let echo = program("echo").unwrap();
        let libraries = output(Command::new("ldd").arg(&echo));
        self.archive("libc6", "", |root| {
            let folder = root.join("lib/here-linux-gnu");
            fs::create_dir_all(&folder).unwrap();
            for path in libraries.split_whitespace().map(Path::new).filter(|path| path.is_absolute()) {
                fs::copy(path, folder.join(path.file_name().unwrap())).unwrap();
            }
            fs::create_dir_all(root.join("lib64")).unwrap();
            // Debian's libc6 has such a link, which leads to the machine's loader.
            symlink("/lib/nowhere/ld-linux-x86-64.so.2", root.join("lib64/ld-linux-x86-64.so.2")).unwrap();
        });
        self.archive("qemu-system-x86", "Depends: qemu-system-common, libc6\n", |root| {
            fs::create_dir_all(root.join("usr/bin")).unwrap();
            fs::copy(&echo, root.join("usr/bin/qemu-system-x86_64")).unwrap();
        });
    }

    /// What set-up finds here while these tools are missing.
    fn state(&self, missing: &[Tool], lists: Lists) -> State {
        let compiler = Compiler {
            cargo: "/usr/bin/cargo".into(),
            rustc: "/usr/bin/rustc".into(),
            release: Version { major: 1, minor: 96 },
            llvm: Version { major: 22, minor: 1 },
        };
        let linker = Linker { path: "/bpf-linker".into(), llvm: None };
        let toolchain = Ok(Toolchain { compiler, linker });
        State {
            apt: Apt::read(&self.machine, &toolchain, missing, lists),
            toolchain,
            missing_tools: missing.to_vec(),
            root: true,
            rustup: false,
            binstall: false,
            llvm_dev: Vec::new(),
            overrides: Vec::new(),
        }
    }

    fn bins(&self) -> Vec<PathBuf> {
        bins(self.machine.unpacked.as_deref().unwrap())
    }
}

impl Drop for Fixture {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.folder);
    }
}

fn output(command: &mut Command) -> String {
    let output = command.env("LC_ALL", "C").output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn is_debian() -> bool {
    let debian = ["apt-get", "dpkg-deb", "ldd"].iter().all(|name| program(name).is_some());
    if !debian {
        println!("not here: this is no Debian");
    }
    debian
}

// `cargo xtask test` failed where `qemu-utils` was from backports: apt would have had to remove it.
#[test]
fn qemu_is_unpacked_beside_a_conflicting_package() {
    if !is_debian() {
        return;
    }
    let fixture = Fixture::new("conflict");
    fixture.archive_qemu();
    let status = fs::read(fixture.folder.join("status")).unwrap();

    let steps = plan(&fixture.state(&[QEMU], Lists::Found)).steps;
    assert_eq!(steps, [Step::UpdateLists], "apt has no lists yet");
    perform(&fixture.machine, &steps[0]).unwrap();

    let steps = plan(&fixture.state(&[QEMU], Lists::Updated)).steps;
    let [Step::Unpack { package, .. }] = steps.as_slice() else { panic!("{steps:?}") };
    assert_eq!(package.name, "qemu-system-x86");
    assert_eq!(
        steps[0].to_string(),
        "unpack qemu-system-x86 into the cache, to run from there, as apt would have to remove qemu-utils"
    );
    assert!(fixture.bins().is_empty());
    // An earlier set-up was interrupted.
    fs::create_dir_all(fixture.folder.join("cache/unpacked/.qemu-system-x86.partial/root/usr")).unwrap();
    perform(&fixture.machine, &steps[0]).unwrap();

    let [bin] = fixture.bins().try_into().unwrap();
    let printed = output(Command::new(bin.join(QEMU.program)).args(["-kernel", "an image"]));
    let root = bin.parent().unwrap().join("root");
    assert!(printed.starts_with(&format!("-L {}/usr/share/qemu -L ", root.display())), "{printed}");
    assert!(printed.ends_with("-kernel an image\n"), "{printed}");
    let left = fs::read(fixture.folder.join("status")).unwrap();
    assert!(left == status, "the installed packages have changed");

    // The second time there is nothing to do.
    assert_eq!(plan(&fixture.state(&[], Lists::Updated)), Plan::default());
    let made = bin.metadata().unwrap().modified().unwrap();
    perform(&fixture.machine, &steps[0]).unwrap();
    assert_eq!(bin.metadata().unwrap().modified().unwrap(), made, "it was made again");
}

// A source that does not answer ended set-up before it unpacked anything.
#[test]
fn old_lists_serve_when_an_update_fails() {
    if !is_debian() {
        return;
    }
    let fixture = Fixture::new("update");
    fixture.archive_qemu();
    update_lists(&fixture.machine);
    let sources = fixture.folder.join("sources.list");
    let gone = format!("deb [trusted=yes] file:{}/gone ./\n", fixture.folder.display());
    fs::write(&sources, fs::read_to_string(&sources).unwrap() + &gone).unwrap();
    assert!(perform(&fixture.machine, &Step::UpdateLists).is_err());
    update_lists(&fixture.machine);
    let steps = plan(&fixture.state(&[QEMU], Lists::Updated)).steps;
    assert!(matches!(steps.as_slice(), [Step::Unpack { .. }]), "{steps:?}");
    perform(&fixture.machine, &steps[0]).unwrap();
}

#[test]
fn a_folder_of_another_recipe_is_made_again() {
    if !is_debian() {
        return;
    }
    let fixture = Fixture::new("recipe");
    fixture.archive_qemu();
    perform(&fixture.machine, &Step::UpdateLists).unwrap();
    let unpack = Step::Unpack { package: of(QEMU.package).unwrap(), reason: String::new() };
    perform(&fixture.machine, &unpack).unwrap();
    let [bin] = fixture.bins().try_into().unwrap();
    fs::remove_file(bin.join(QEMU.program)).unwrap();
    fs::write(bin.with_file_name("recipe"), "of another release").unwrap();
    assert!(fixture.bins().is_empty());
    perform(&fixture.machine, &unpack).unwrap();
    assert_eq!(fixture.bins(), std::slice::from_ref(&bin));
    assert!(bin.join(QEMU.program).exists());
}

/// What each program is run with to see that it finds its libraries and files.
const TRIALS: [(&str, &str); 26] = [
    ("iptables", "--version"),
    ("ip6tables", "--version"),
    ("iptables-save", "--version"),
    ("iptables-nft", "--version"),
    ("iptables-legacy", "--version"),
    ("ip6tables-nft", "--version"),
    ("ip6tables-legacy", "--version"),
    ("iptables-nft-save", "--version"),
    ("iptables-legacy-save", "--version"),
    ("iptables-restore", "--version"),
    ("nft", "--version"),
    ("qemu-system-x86_64", "--version"),
    ("busybox", "true"),
    ("conntrack", "--version"),
    ("bpftool", "version"),
    ("strace", "-V"),
    ("ip", "-V"),
    ("tc", "-V"),
    ("sysctl", "--version"),
    ("mmdebstrap", "--version"),
    ("make", "--version"),
    ("flex", "--version"),
    ("m4", "--version"),
    ("bc", "--version"),
    ("xz", "--version"),
    ("pahole", "--version"),
];

#[test]
#[ignore = "downloads 150 MB of Debian's packages"]
fn every_package_runs_out_of_its_folder() {
    if !is_debian() {
        return;
    }
    let folder = env::temp_dir().join(format!("wsl-mirror-unpacked-{}", std::process::id()));
    let machine = Machine { apt_config: None, unpacked: Some(folder.join("unpacked")) };
    for package in &PACKAGES {
        perform(&machine, &Step::Unpack { package, reason: String::new() }).unwrap();
    }
    let bins = bins(machine.unpacked.as_deref().unwrap());
    assert_eq!(bins.len(), PACKAGES.len());
    let find = |name: &str| bins.iter().map(|bin| bin.join(name)).find(|path| path.exists()).unwrap();
    for (name, argument) in TRIALS {
        println!("{name}: {}", output(Command::new(find(name)).arg(argument).env("PATH", "/none")));
    }
    // bison reads skeletons, and runs m4.
    fs::write(folder.join("grammar.y"), "%%\nnothing: ;\n").unwrap();
    output(Command::new(find("bison")).arg("grammar.y").current_dir(&folder));
    assert!(folder.join("grammar.tab.c").exists());
    fs::write(folder.join("words.l"), "%%\na ;\n").unwrap();
    output(Command::new(find("flex")).arg("words.l").current_dir(&folder));
    assert!(folder.join("lex.yy.c").exists());
    fs::remove_dir_all(&folder).unwrap();
}
