//! No circle among the product's files, and no import that runs upwards.
//!
//! An import is a path that leads from one file to another: in a `use`, in an expression, in a macro's arguments. A
//! parent that only declares `mod child;` imports nothing. Code below `#[cfg(test)]` is left out.

#![expect(clippy::unwrap_used, reason = "a test panics where it fails")]

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::{fmt, fs};

use syn::visit::{self, Visit};
use syn::{Attribute, Item, UseTree};

/// Files and folders of `src`, the lowest layer first. A file imports from its own layer and from those below.
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
        let mut graph = Self::default();
        for (file, text) in files {
            let syntax = syn::parse_file(text).unwrap_or_else(|error| panic!("{}: {error}", file.display()));
            let mut imports = Imports::new(module_path(file), &modules);
            imports.visit_file(&syntax);
            imports.found.remove(file);
            graph.0.insert(file.clone(), imports.found);
        }
        graph
    }

    fn faults(&self) -> Vec<Fault> {
        let mut faults = Vec::new();
        for (from, imports) in &self.0 {
            let Some(rank) = layer(from) else {
                faults.push(Fault::NoLayer(from.clone()));
                continue;
            };
            let upward = imports.iter().filter(|to| layer(to).is_some_and(|other| other > rank));
            faults.extend(upward.map(|to| Fault::Upward { from: from.clone(), to: to.clone() }));
        }
        faults.extend(self.circles().into_iter().map(Fault::Circle));
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

/// Finds the files that one file imports from.
struct Imports<'a> {
    /// The module that is being visited: the file's, or one inside it.
    module: ModulePath,
    modules: &'a BTreeMap<ModulePath, PathBuf>,
    found: BTreeSet<PathBuf>,
}

impl<'a> Imports<'a> {
    const fn new(module: ModulePath, modules: &'a BTreeMap<ModulePath, PathBuf>) -> Self {
        Self { module, modules, found: BTreeSet::new() }
    }

    fn add(&mut self, segments: &[String]) {
        let Some((first, rest)) = segments.split_first() else { return };
        let mut path = self.module.clone();
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
                    return;
                }
            }
        }
        path.extend(rest.iter().cloned());
        // The longest beginning that is a file; behind that come items, or modules inside the file.
        while !self.modules.contains_key(&path) && !path.is_empty() {
            path.pop();
        }
        self.found.extend(self.modules.get(&path).cloned());
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
        self.add_tree(&[], &item.tree);
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

/// The files of `src`, without those that are modules of tests.
fn sources() -> BTreeMap<PathBuf, String> {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
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
                // It says only `wsl_mirror::main()`.
                if below != Path::new("main.rs") {
                    files.insert(below, fs::read_to_string(&path).unwrap());
                }
            }
        }
    }
    files
}

#[test]
fn imports_run_downwards_and_in_no_circle() {
    let files = sources();
    assert!(files.len() > 50, "only {} files", files.len());
    let faults: Vec<_> = Graph::of(&files).faults().iter().map(ToString::to_string).collect();
    assert!(faults.is_empty(), "{} faults:\n{}", faults.len(), faults.join("\n"));
}

fn faults(files: &[(&str, &str)]) -> Vec<String> {
    let files = files.iter().map(|(path, text)| (PathBuf::from(path), (*text).to_owned())).collect();
    Graph::of(&files).faults().iter().map(ToString::to_string).collect()
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
fn what_only_tests_import_is_no_import() {
    let text = "#[cfg(test)] mod tests { use crate::loader::pins; }";
    assert!(faults(&[("loader/pins.rs", ""), ("host/a.rs", text)]).is_empty());
}

#[test]
fn a_file_without_a_layer_is_a_fault() {
    assert_eq!(faults(&[("misc/mod.rs", "")]), ["misc/mod.rs is in no layer"]);
}
