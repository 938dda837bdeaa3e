package main

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"runtime"
	"runtime/debug"
	"slices"
	"strings"
	"text/tabwriter"
)

// report is all that a run has found out.
type report struct {
	Machine    string      `json:"machine"`
	Modules    []string    `json:"modules"`
	Samples    int         `json:"samples"`
	SampleTime string      `json:"sampleTime"`
	Tables     []table     `json:"tables"`
	Bars       []barResult `json:"bars,omitempty"`
}

// printer writes a report as it grows.
type printer interface {
	head(*report)
	table(table)
	end(*report) error
}

// printerFor returns the printer of a format.
func printerFor(format string, out io.Writer) (printer, error) {
	switch format {
	case "table":
		return &textPrinter{out: out}, nil
	case "markdown":
		return &textPrinter{out: out, markdown: true}, nil
	case "json":
		return &jsonPrinter{out: out}, nil
	}
	return nil, fmt.Errorf("-format is %q, want table, markdown or json", format)
}

// jsonPrinter writes everything at the end.
type jsonPrinter struct{ out io.Writer }

func (*jsonPrinter) head(*report) {}
func (*jsonPrinter) table(table)  {}
func (p *jsonPrinter) end(r *report) error {
	enc := json.NewEncoder(p.out)
	enc.SetIndent("", "\t")
	return enc.Encode(r)
}

// textPrinter writes for people, in plain text or in Markdown.
type textPrinter struct {
	out      io.Writer
	markdown bool
}

func (p *textPrinter) head(r *report) {
	fmt.Fprintf(p.out, "%s; medians of %d samples of %s\n\n", r.Machine, r.Samples, r.SampleTime)
	fmt.Fprintln(p.out, "peers:", strings.Join(r.Modules, ", "))
}

func (p *textPrinter) table(t table) {
	cells := [][]string{{"peer", "ns/op", "× ours", "min–max", "B/op", "allocs/op"}}
	for _, r := range t.Rows {
		ratio := "–"
		if r.Ratio > 0 {
			ratio = fmt.Sprintf("%.2f", r.Ratio)
		}
		cells = append(cells, []string{
			r.Peer, figure(r.Median), ratio, figure(r.least()) + "–" + figure(r.most()),
			fmt.Sprint(r.Bytes), fmt.Sprint(r.Allocs),
		})
	}
	p.grid(t.Name, cells)
}

func (p *textPrinter) end(r *report) error {
	if len(r.Bars) > 0 {
		cells := [][]string{{"bar", "want", "have", ""}}
		for _, b := range r.Bars {
			cells = append(cells, []string{b.Name, b.Want, b.Have, b.Verdict})
		}
		p.grid("Bars", cells)
	}
	return nil
}

// grid writes lines of cells, the first of which is the heading.
func (p *textPrinter) grid(title string, lines [][]string) {
	if p.markdown {
		fmt.Fprintf(p.out, "\n### %s\n\n", title)
		for i, cells := range lines {
			fmt.Fprintf(p.out, "| %s |\n", strings.Join(cells, " | "))
			if i == 0 {
				fmt.Fprintf(p.out, "| ---%s |\n", strings.Repeat(" | ---:", len(cells)-1))
			}
		}
		return
	}
	fmt.Fprintf(p.out, "\n%s\n", title)
	w := tabwriter.NewWriter(p.out, 0, 0, 2, ' ', 0)
	for _, cells := range lines {
		fmt.Fprintf(w, "  %s\t\n", strings.Join(cells, "\t"))
	}
	w.Flush()
}

// figure writes nanoseconds with three digits, as far as there are any.
func figure(ns float64) string {
	switch {
	case ns < 10:
		return fmt.Sprintf("%.2f", ns)
	case ns < 100:
		return fmt.Sprintf("%.1f", ns)
	}
	return fmt.Sprintf("%.0f", ns)
}

// machine says what the run ran on.
func machine() string {
	return fmt.Sprintf("%s %s/%s, %s, %d CPUs, GOMAXPROCS %d",
		runtime.Version(), runtime.GOOS, runtime.GOARCH, processor(), runtime.NumCPU(), runtime.GOMAXPROCS(0))
}

// processor names the processor, where that is easy to find out.
func processor() string {
	f, err := os.Open("/proc/cpuinfo")
	if err != nil {
		return "unknown processor"
	}
	defer f.Close()
	for lines := bufio.NewScanner(f); lines.Scan(); {
		if name, value, ok := strings.Cut(lines.Text(), ":"); ok && strings.TrimSpace(name) == "model name" {
			return strings.TrimSpace(value)
		}
	}
	return "unknown processor"
}

// versions lists the modules of the peers, as they were built into the program.
func versions(contests []contest) []string {
	built := make(map[string]string)
	if info, ok := debug.ReadBuildInfo(); ok {
		for _, m := range info.Deps {
			built[m.Path] = m.Version
		}
	}
	var modules []string
	for _, c := range contests {
		for _, p := range c.peers {
			if p.module != "" {
				modules = append(modules, strings.TrimSpace(p.module+" "+built[p.module]))
			}
		}
	}
	slices.Sort(modules)
	return slices.Compact(modules)
}
