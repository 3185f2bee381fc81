//! No circle among the files of a crate, and in the product no import that runs upwards.
//!
//! An import is a path that leads from one file to another: in a `use`, in an expression, in a macro's arguments. It
//! leads to the file that defines the item, past `pub use`. A parent that declares `mod child;` or only re-exports what
//! a child defines imports nothing. Code below `#[cfg(test)]` is left out.

#![expect(clippy::unwrap_used, reason = "a test panics where it fails")]

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::{fmt, fs};

use syn::visit::{self, Visit};
use syn::{Attribute, Item, UseTree};

/// The product, from the root of the repository.
const PRODUCT: &str = "wsl-mirror-user";

/// The other crates, likewise.
const OTHERS: [&str; 8] = [
    "tests",
    "tests/packets",
    "tests/windows",
    "wsl-mirror-ebpf",
    "wsl-mirror-ebpf/core",
    "xtask",
    "xtask/lab",
    "xtask/toolchain",
];

/// Files and folders of the product's `src`, the lowest layer first. A file imports from its own layer and from those
/// below.
const LAYERS: [&[&str]; 7] = [
    &["errors", "exit", "notes", "output", "policy", "wait"],
    &["host"],
    &["config"],
    &["loader"],
    &["agent", "inspect", "install"],
    &["commands"],
    &["fuzzing", "lib", "main"],
];

/// A module's path: `["host", "firewall"]`; empty for the crate's root.
type ModulePath = Vec<String>;

/// Which file imports from which others.
#[derive(Debug, Default)]
struct Graph(BTreeMap<PathBuf, BTreeSet<PathBuf>>);

/// What the graph must not have.
#[derive(Debug, PartialEq, Eq)]
enum Fault {
    Circle(Vec<PathBuf>),
    Upward { from: PathBuf, to: PathBuf },
    NoLayer(PathBuf),
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Circle(files) => {
                let files: Vec<_> = files.iter().map(|file| file.display().to_string()).collect();
                write!(f, "circle: {}", files.join(" -> "))
            }
            Self::Upward { from, to } => write!(f, "upward: {} -> {}", from.display(), to.display()),
            Self::NoLayer(file) => write!(f, "{} is in no layer", file.display()),
        }
    }
}

impl Graph {
    /// Reads files, each with its path below `src` and its text.
    fn of(files: &BTreeMap<PathBuf, String>) -> Self {
        let modules: BTreeMap<ModulePath, PathBuf> =
            files.keys().map(|file| (module_path(file), file.clone())).collect();
        let parsed: BTreeMap<&PathBuf, syn::File> = files
            .iter()
            .map(|(file, text)| {
                let syntax =
                    syn::parse_file(text).unwrap_or_else(|error| panic!("{}: {error}", file.display()));
                (file, syntax)
            })
            .collect();
        let names: BTreeMap<ModulePath, Names> =
            parsed.iter().map(|(file, syntax)| (module_path(file), Names::of(syntax))).collect();
        let mut graph = Self::default();
        for (file, syntax) in &parsed {
            let mut imports = Imports::new(module_path(file), &modules, &names);
            imports.visit_file(syntax);
            imports.found.remove(*file);
            graph.0.insert((*file).clone(), imports.found);
        }
        graph
    }

    /// Circles, and what disagrees with [`LAYERS`].
    fn faults(&self) -> Vec<Fault> {
        let mut faults: Vec<_> = self.circles().into_iter().map(Fault::Circle).collect();
        for (from, imports) in &self.0 {
            let Some(rank) = layer(from) else {
                faults.push(Fault::NoLayer(from.clone()));
                continue;
            };
            let upward = imports.iter().filter(|to| layer(to).is_some_and(|other| other > rank));
            faults.extend(upward.map(|to| Fault::Upward { from: from.clone(), to: to.clone() }));
        }
        faults
    }

    /// The shortest circle through each file that lies on one, each circle once.
    fn circles(&self) -> Vec<Vec<PathBuf>> {
        let mut circles: Vec<Vec<PathBuf>> = Vec::new();
        for start in self.0.keys() {
            let Some(circle) = self.circle_through(start) else { continue };
            let files: BTreeSet<_> = circle.iter().collect();
            if !circles.iter().any(|known| known.iter().collect::<BTreeSet<_>>() == files) {
                circles.push(circle);
            }
        }
        circles
    }

    fn circle_through(&self, start: &PathBuf) -> Option<Vec<PathBuf>> {
        let mut ways = vec![vec![start.clone()]];
        let mut seen = BTreeSet::new();
        while !ways.is_empty() {
            let mut longer = Vec::new();
            for way in ways {
                for next in &self.0[way.last()?] {
                    let mut way = way.clone();
                    way.push(next.clone());
                    if next == start {
                        return Some(way);
                    }
                    if seen.insert(next.clone()) {
                        longer.push(way);
                    }
                }
            }
            ways = longer;
        }
        None
    }
}

fn layer(file: &Path) -> Option<usize> {
    let first = file.iter().next()?.to_str()?;
    let name = first.strip_suffix(".rs").unwrap_or(first);
    LAYERS.iter().position(|names| names.contains(&name))
}

fn module_path(file: &Path) -> ModulePath {
    let mut path: ModulePath =
        file.with_extension("").iter().map(|part| part.to_string_lossy().into()).collect();
    if file == Path::new("lib.rs") || file == Path::new("main.rs") {
        path.clear();
    }
    if path.last().is_some_and(|last| last == "mod") {
        path.pop();
    }
    path
}

/// The names that a file gives to others.
#[derive(Debug, Default)]
struct Names {
    defined: BTreeSet<String>,
    /// By name, the path that it is re-exported from.
    reexported: BTreeMap<String, Vec<String>>,
    /// Paths of which everything is re-exported.
    globs: Vec<Vec<String>>,
}

impl Names {
    fn of(file: &syn::File) -> Self {
        let mut names = Self::default();
        for item in &file.items {
            match item {
                Item::Const(item) => drop(names.defined.insert(item.ident.to_string())),
                Item::Enum(item) => drop(names.defined.insert(item.ident.to_string())),
                Item::Fn(item) => drop(names.defined.insert(item.sig.ident.to_string())),
                Item::Static(item) => drop(names.defined.insert(item.ident.to_string())),
                Item::Struct(item) => drop(names.defined.insert(item.ident.to_string())),
                Item::Trait(item) => drop(names.defined.insert(item.ident.to_string())),
                Item::Type(item) => drop(names.defined.insert(item.ident.to_string())),
                Item::Use(item) if is_reexport(item) => names.reexport(&[], &item.tree),
                // What a macro defines is not known.
                _ => {}
            }
        }
        names
    }

    fn reexport(&mut self, before: &[String], tree: &UseTree) {
        let longer = |name: &syn::Ident| [before, &[name.to_string()]].concat();
        match tree {
            UseTree::Path(part) => self.reexport(&longer(&part.ident), &part.tree),
            UseTree::Group(group) => group.items.iter().for_each(|tree| self.reexport(before, tree)),
            UseTree::Glob(_) => self.globs.push(before.to_vec()),
            UseTree::Name(name) => {
                self.reexported.insert(name.ident.to_string(), longer(&name.ident));
            }
            UseTree::Rename(name) => {
                self.reexported.insert(name.rename.to_string(), longer(&name.ident));
            }
        }
    }
}

fn is_reexport(item: &syn::ItemUse) -> bool {
    !matches!(item.vis, syn::Visibility::Inherited)
}

/// Finds the files that one file imports from.
struct Imports<'a> {
    /// The module that is being visited: the file's, or one inside it.
    module: ModulePath,
    modules: &'a BTreeMap<ModulePath, PathBuf>,
    names: &'a BTreeMap<ModulePath, Names>,
    found: BTreeSet<PathBuf>,
}

impl<'a> Imports<'a> {
    const fn new(
        module: ModulePath,
        modules: &'a BTreeMap<ModulePath, PathBuf>,
        names: &'a BTreeMap<ModulePath, Names>,
    ) -> Self {
        Self { module, modules, names, found: BTreeSet::new() }
    }

    fn add(&mut self, segments: &[String]) {
        let file = self.definition(&self.module, segments);
        self.found.extend(file.and_then(|path| self.modules.get(&path)).cloned());
    }

    /// The module of the file that defines what a path means in `module`; nothing if that is no file of the crate.
    fn definition(&self, module: &ModulePath, segments: &[String]) -> Option<ModulePath> {
        let (first, rest) = segments.split_first()?;
        let mut path = module.clone();
        let mut rest = rest;
        match first.as_str() {
            "crate" => path.clear(),
            "self" => {}
            "super" => {
                path.pop();
                while let Some((first, after)) = rest.split_first()
                    && first == "super"
                {
                    path.pop();
                    rest = after;
                }
            }
            child => {
                path.push(child.to_owned());
                if !self.modules.contains_key(&path) {
                    // An item, or another crate.
                    return None;
                }
            }
        }
        path.extend(rest.iter().cloned());
        // The longest beginning that is a file; behind that come items, or modules inside the file.
        let mut item = None;
        while !self.modules.contains_key(&path) && !path.is_empty() {
            item = path.pop();
        }
        let names = self.names.get(&path)?;
        let Some(item) = item.filter(|item| !names.defined.contains(item)) else { return Some(path) };
        if let Some(from) = names.reexported.get(&item) {
            return self.definition(&path, from);
        }
        let from_glob = names.globs.iter().find_map(|glob| {
            let target = self.definition(&path, glob)?;
            self.names.get(&target)?.defined.contains(&item).then_some(target)
        });
        Some(from_glob.unwrap_or(path))
    }

    fn add_tree(&mut self, before: &[String], tree: &UseTree) {
        let mut path = before.to_vec();
        match tree {
            UseTree::Path(part) => {
                path.push(part.ident.to_string());
                self.add_tree(&path, &part.tree);
            }
            UseTree::Group(group) => group.items.iter().for_each(|tree| self.add_tree(before, tree)),
            UseTree::Glob(_) => self.add(&path),
            UseTree::Name(name) if name.ident == "self" => self.add(&path),
            UseTree::Name(name) => {
                path.push(name.ident.to_string());
                self.add(&path);
            }
            UseTree::Rename(name) => {
                path.push(name.ident.to_string());
                self.add(&path);
            }
        }
    }
}

fn is_for_tests(attributes: &[Attribute]) -> bool {
    attributes.iter().any(|attribute| {
        attribute.path().is_ident("cfg")
            && attribute.parse_args::<syn::Path>().is_ok_and(|condition| condition.is_ident("test"))
    })
}

impl<'ast> Visit<'ast> for Imports<'_> {
    fn visit_item(&mut self, item: &'ast Item) {
        let attributes = match item {
            Item::Fn(item) => &item.attrs,
            Item::Impl(item) => &item.attrs,
            Item::Mod(item) => &item.attrs,
            Item::Use(item) => &item.attrs,
            Item::Const(item) => &item.attrs,
            _ => &Vec::new(),
        };
        if !is_for_tests(attributes) {
            visit::visit_item(self, item);
        }
    }

    fn visit_item_mod(&mut self, item: &'ast syn::ItemMod) {
        self.module.push(item.ident.to_string());
        visit::visit_item_mod(self, item);
        self.module.pop();
    }

    fn visit_item_use(&mut self, item: &'ast syn::ItemUse) {
        if !is_reexport(item) {
            self.add_tree(&[], &item.tree);
        }
    }

    fn visit_path(&mut self, path: &'ast syn::Path) {
        let segments: Vec<_> = path.segments.iter().map(|segment| segment.ident.to_string()).collect();
        // A single name is an item of the file, whatever module may be called alike.
        if segments.len() > 1 {
            self.add(&segments);
        }
        visit::visit_path(self, path);
    }

    fn visit_macro(&mut self, call: &'ast syn::Macro) {
        let text = call.tokens.to_string().replace(" ::", "::").replace(":: ", "::");
        for word in text.split(|c: char| !c.is_alphanumeric() && c != '_' && c != ':') {
            let segments: Vec<_> = word.split("::").map(str::to_owned).collect();
            if segments.len() > 1 && segments.iter().all(|segment| !segment.is_empty()) {
                self.add(&segments);
            }
        }
    }
}

/// The files of a crate's `src`, without those that are modules of tests.
fn sources(package: &str) -> BTreeMap<PathBuf, String> {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(package).join("src");
    let mut files = BTreeMap::new();
    let mut folders = vec![source.clone()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs")
                && !path.ends_with("tests.rs")
            {
                let below = path.strip_prefix(&source).unwrap().to_owned();
                files.insert(below, fs::read_to_string(&path).unwrap());
            }
        }
    }
    // Beside a library, the program only calls it.
    if files.contains_key(Path::new("lib.rs")) {
        files.remove(Path::new("main.rs"));
    }
    files
}

fn lines(faults: &[Fault]) -> Vec<String> {
    faults.iter().map(ToString::to_string).collect()
}

#[test]
fn the_products_imports_run_downwards_and_in_no_circle() {
    let files = sources(PRODUCT);
    assert!(files.len() > 50, "only {} files", files.len());
    let faults = lines(&Graph::of(&files).faults());
    assert!(faults.is_empty(), "{} faults:\n{}", faults.len(), faults.join("\n"));
}

#[test]
fn no_other_crate_has_a_circle_among_its_files() {
    let mut found = Vec::new();
    for package in OTHERS {
        let circles: Vec<_> = Graph::of(&sources(package)).circles().into_iter().map(Fault::Circle).collect();
        found.extend(lines(&circles).into_iter().map(|circle| format!("{package}: {circle}")));
    }
    assert!(found.is_empty(), "{}", found.join("\n"));
}

fn faults(files: &[(&str, &str)]) -> Vec<String> {
    let files = files.iter().map(|(path, text)| (PathBuf::from(path), (*text).to_owned())).collect();
    lines(&Graph::of(&files).faults())
}

#[test]
fn an_upward_import_is_found_wherever_it_stands() {
    for text in [
        "use crate::loader::pins;",
        "use crate::{config, loader::pins::{self, Pins}};",
        "fn f() { crate::loader::pins::open() }",
        "fn f() { println!(\"{}\", crate::loader::pins::NAME) }",
        "fn f(pins: &super::loader::pins::Pins) {}",
        "mod inner { use super::super::loader::pins; }",
    ] {
        let found = faults(&[("host/mod.rs", ""), ("loader/pins.rs", ""), ("host.rs", text)]);
        assert_eq!(found, ["upward: host.rs -> loader/pins.rs"], "{text}");
    }
}

#[test]
fn a_child_that_uses_the_parent_that_uses_it_is_a_circle() {
    let parent = "mod child; pub struct Shared; fn f() { child::g() }";
    let found = faults(&[("host/mod.rs", parent), ("host/child.rs", "use super::Shared;")]);
    assert_eq!(found, ["circle: host/child.rs -> host/mod.rs -> host/child.rs"]);
    let declares = "mod child; pub struct Shared;";
    assert!(faults(&[("host/mod.rs", declares), ("host/child.rs", "use super::Shared;")]).is_empty());
}

#[test]
fn a_reexport_leads_to_the_file_that_defines_the_item() {
    let facade = [("host/mod.rs", "pub use a::{f as g};"), ("host/a.rs", "pub fn f() {}")];
    let user = ("host/b.rs", "use super::g;");
    assert!(faults(&[facade[0], facade[1], user]).is_empty());
    let circle = [facade[0], ("host/a.rs", "pub fn f() { super::b::h() }"), user];
    assert_eq!(faults(&circle), ["circle: host/a.rs -> host/b.rs -> host/a.rs"]);
    let glob = [("host/mod.rs", "pub use a::*;"), circle[1], ("host/b.rs", "use super::f;")];
    assert_eq!(faults(&glob), ["circle: host/a.rs -> host/b.rs -> host/a.rs"]);
}

#[test]
fn what_only_tests_import_is_no_import() {
    let text = "#[cfg(test)] mod tests { use crate::loader::pins; }";
    assert!(faults(&[("loader/pins.rs", ""), ("host/a.rs", text)]).is_empty());
}

#[test]
fn a_file_without_a_layer_is_a_fault() {
    assert_eq!(faults(&[("misc/mod.rs", "")]), ["misc/mod.rs is in no layer"]);
}
