//! The results of the matrix, which `tests/scenarios/engines/results.rs` writes, and their table.

use std::{collections::BTreeMap, fmt::Write as _, fs, path::Path, time::Duration};

use anyhow::{Context as _, Result, bail};

use crate::table as text_table;

/// A row: a configuration and its results.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Row {
    /// Engine and release, how its ports are served, wslinfo, `loopback0` before or after the daemon.
    pub(super) configuration: [String; 4],
    /// Suite and package with its version.
    pub(super) installed: Option<(String, String)>,
    /// Why it was not run.
    skipped: Option<String>,
    cells: Vec<Cell>,
    /// Promises that were not kept, in words.
    pub(super) notes: Vec<String>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Cell {
    client: String,
    protocol: String,
    server: String,
    phase: String,
    answer: String,
    median: Option<Duration>,
}

/// The phases as they are called in results, and the headings of their columns.
pub(super) const PHASES: [(&str, &str); 5] = [
    ("without", "without us"),
    ("load", "load"),
    ("run", "run"),
    ("direct", "direct"),
    ("after", "after unload"),
];
/// The four publications in the order in which a column has them.
const PUBLISHED: [(&str, &str); 4] = [
    ("TCP", "container on 0.0.0.0"),
    ("TCP", "container on 127.0.0.1"),
    ("UDP", "container on 0.0.0.0"),
    ("UDP", "container on 127.0.0.1"),
];
pub(super) const LEGEND: &str = "W: a client on Windows, L: one in Linux, both to 127.0.0.1; TCP published on 0.0.0.0, \
                                 TCP on 127.0.0.1, UDP on 0.0.0.0, UDP on 127.0.0.1.\n\
                                 ✓ answers, ✗ does not, ~ now and then. load: containers that ran before it; run: \
                                 containers that started after it; direct: path = \"direct\".\n\
                                 host: programs of the guest from both sides, and Windows' from Linux, in all phases.\n\
                                 slower: with us than without, the worst median of connecting (UDP: of an answer).\n";

/// Reads every file of the folder, in the order of their names.
pub(crate) fn read(folder: &Path) -> Result<Vec<Row>> {
    let entries = fs::read_dir(folder).with_context(|| format!("listing {}", folder.display()))?;
    let mut paths: Vec<_> = entries.flatten().map(|entry| entry.path()).collect();
    paths.sort();
    paths
        .iter()
        .map(|path| {
            let text = fs::read_to_string(path).with_context(|| format!("reading {}", path.display()))?;
            parse(&text).with_context(|| format!("in {}", path.display()))
        })
        .collect()
}

fn parse(text: &str) -> Result<Row> {
    let mut row = Row::default();
    for line in text.lines() {
        let fields: Vec<String> = line.split('\t').map(str::to_owned).collect();
        match (fields[0].as_str(), &fields[1..]) {
            ("configuration", [a, b, c, d]) => row.configuration = [a, b, c, d].map(Clone::clone),
            ("installed", [suite, what]) => row.installed = Some((suite.clone(), what.clone())),
            ("skipped", [reason]) => row.skipped = Some(reason.clone()),
            ("cell", [client, protocol, server, phase, answer, median, _failure]) => row.cells.push(Cell {
                client: client.clone(),
                protocol: protocol.clone(),
                server: server.clone(),
                phase: phase.clone(),
                answer: answer.clone(),
                median: median.parse().ok().map(Duration::from_micros),
            }),
            ("note", [note]) => row.notes.push(note.clone()),
            _ => bail!("not understood: {line}"),
        }
    }
    Ok(row)
}

impl Row {
    /// `W✓✓✓✓ L✗✗✗✗`: the published ports in a phase.
    fn published(&self, phase: &str) -> String {
        let marks = |client: &str| -> String {
            PUBLISHED
                .iter()
                .map(|(protocol, server)| {
                    let cell = self.cells.iter().find(|cell| {
                        [&cell.client, &cell.protocol, &cell.server, &cell.phase]
                            .into_iter()
                            .eq([client, protocol, server, phase])
                    });
                    cell.map_or('?', Cell::mark)
                })
                .collect()
        };
        format!("W{} L{}", marks("Windows"), marks("Linux"))
    }

    /// Every cell that does not answer with us: client, server, protocol and phase in words.
    pub(super) fn silent_with_us(&self) -> impl Iterator<Item = String> {
        let with_us = |cell: &&Cell| ["load", "run", "direct"].contains(&cell.phase.as_str());
        self.cells
            .iter()
            .filter(with_us)
            .filter(|cell| cell.mark() != '✓')
            .map(|cell| format!("{} to {}, {}, {}", cell.client, cell.server, cell.protocol, cell.phase))
    }

    /// How many of the others answer, in all phases.
    fn others(&self) -> String {
        let others: Vec<_> =
            self.cells.iter().filter(|cell| !cell.server.starts_with("container")).map(Cell::mark).collect();
        let well = others.iter().filter(|mark| **mark == '✓').count();
        if well == others.len() { "✓".to_owned() } else { format!("{well} of {}", others.len()) }
    }

    /// How much slower than without us the cell is that lost most.
    fn slower(&self) -> String {
        let mut medians = BTreeMap::new();
        for cell in &self.cells {
            let key = (&cell.client, &cell.protocol, &cell.server);
            medians.entry(key).or_insert_with(BTreeMap::new).insert(cell.phase.as_str(), cell.median);
        }
        let micros = |duration: Duration| duration.as_secs_f64() * 1e6;
        let differences = medians.values().flat_map(|phases| {
            ["load", "run", "direct"]
                .into_iter()
                .filter_map(|phase| Some(micros((*phases.get(phase)?)?) - micros((*phases.get("without")?)?)))
        });
        differences.reduce(f64::max).map_or_else(|| "-".to_owned(), |worst| format!("{worst:+.0} µs"))
    }

    /// The line of the table.
    pub(super) fn line(&self) -> [String; 11] {
        let [engine, how, wslinfo, loopback0] = self.configuration.clone();
        if let Some(reason) = &self.skipped {
            let empty = || String::new();
            return [
                engine,
                how,
                wslinfo,
                loopback0,
                format!("not run: {reason}"),
                empty(),
                empty(),
                empty(),
                empty(),
                empty(),
                empty(),
            ];
        }
        let [without, load, run, direct, after] = PHASES.map(|(phase, _)| self.published(phase));
        [engine, how, wslinfo, loopback0, without, load, run, direct, after, self.others(), self.slower()]
    }

    /// Whether it was measured.
    pub(super) fn was_run(&self) -> bool {
        self.skipped.is_none()
    }
}

impl Cell {
    fn mark(&self) -> char {
        match self.answer.as_str() {
            "always" => '✓',
            "never" => '✗',
            _ => '~',
        }
    }
}

pub(super) fn heading() -> [&'static str; 11] {
    let [without, load, run, direct, after] = PHASES.map(|(_, heading)| heading);
    ["engine", "ports", "WSL", "loopback0", without, load, run, direct, after, "host", "slower"]
}

/// All rows as a table for people.
pub(crate) fn table(rows: &[Row]) -> String {
    let (run, skipped): (Vec<_>, Vec<_>) = rows.iter().partition(|row| row.was_run());
    let lines: Vec<_> = run.iter().map(|row| row.line()).collect();
    let mut text = text_table::plain(heading(), &lines, 10);
    text.push_str(LEGEND);
    let mut reasons: BTreeMap<(&str, &str), usize> = BTreeMap::new();
    for row in skipped {
        let reason = row.skipped.as_deref().unwrap_or_default();
        *reasons.entry((row.configuration[0].as_str(), reason)).or_default() += 1;
    }
    for ((engine, reason), rows) in reasons {
        let _ = writeln!(text, "{engine}: {rows} not run: {reason}");
    }
    text
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    pub(in super::super) const FILE: &str = "configuration\tDocker 28.5\tproxy off\tno wslinfo\tbefore dockerd\n\
        installed\tsid\tdocker.io 28.5.2+dfsg4-5\n\
        cell\tWindows\tTCP\tcontainer on 0.0.0.0\twithout\talways\t100\t-\n\
        cell\tWindows\tTCP\tcontainer on 0.0.0.0\tload\talways\t250\t-\n\
        cell\tWindows\tTCP\tcontainer on 0.0.0.0\trun\talways\t240\t-\n\
        cell\tWindows\tUDP\tcontainer on 127.0.0.1\twithout\tnever\t-\tno reply\n\
        cell\tLinux\tUDP\tcontainer on 0.0.0.0\twithout\tsometimes\t-\tno reply\n\
        cell\tLinux\tUDP\tcontainer on 127.0.0.1\trun\tsometimes\t-\tno reply\n\
        cell\tLinux\tTCP\tWindows\twithout\talways\t90\t-\n\
        cell\tLinux\tTCP\tWindows\tload\talways\t80\t-\n\
        note\ta promise\n";

    pub(in super::super) fn row(text: &str) -> Row {
        parse(text).unwrap_or_else(|error| panic!("{error:#}"))
    }

    #[test]
    fn a_row_shows_every_publication_by_client() {
        let row = row(FILE);
        assert_eq!(row.published("without"), "W✓??✗ L??~?");
        assert_eq!(row.published("load"), "W✓??? L????");
        assert_eq!((row.others().as_str(), row.slower().as_str()), ("✓", "+150 µs"));
    }

    #[test]
    fn a_row_that_was_not_run_says_why() {
        let text = "configuration\tPodman 5.8\tnetavark\t-\t-\nskipped\tsid has podman 6.0.0 by now\n";
        assert!(table(&[row(text)]).contains("Podman 5.8: 1 not run: sid has podman 6.0.0 by now"));
    }

    #[test]
    fn a_line_of_another_making_is_an_error() {
        assert!(parse("cell\tWindows\n").is_err());
    }
}
