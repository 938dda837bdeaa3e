// Command testreport reads what go test -json writes and prints what a reader
// of a log wants: a line for each package, the output of what failed, and every
// skipped test with its reason. It ends with status 1 if a test failed, if none
// ran, or if one was skipped because a program is "not installed": where all of
// them are meant to be there, such a skip hides a test that never runs.
package main

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
)

func main() {
	ok, err := report(os.Stdin, os.Stdout)
	if err != nil {
		fmt.Fprintln(os.Stderr, "testreport:", err)
	}
	if err != nil || !ok {
		os.Exit(1)
	}
}

// event is one line of go test -json; see go doc test2json.
type event struct {
	Action  string
	Package string
	Test    string
	Elapsed float64
	Output  string
}

// missing is what a test says that skips itself for want of a program.
const missing = "not installed"

type test struct{ pkg, name string }

func report(in io.Reader, out io.Writer) (ok bool, err error) {
	running := make(map[test]string) // what has no result yet, and its output so far
	var passed, failed int
	var packageFailed bool
	var skips, forbidden []string
	lines := bufio.NewReader(in)
	for {
		line, readErr := lines.ReadBytes('\n')
		var e event
		if len(line) > 0 && json.Unmarshal(line, &e) != nil {
			e = event{Action: "build-output", Output: string(line)} // not of go test: hand it on
		}
		key := test{e.Package, e.Test}
		switch e.Action {
		case "build-output":
			fmt.Fprint(out, e.Output)
		case "run":
			running[key] = ""
		case "output":
			if !strings.HasPrefix(e.Output, "=== ") {
				running[key] += e.Output
			}
		case "pass", "fail", "skip":
			output := running[key]
			delete(running, key)
			switch {
			case e.Test == "" && e.Action == "pass":
				fmt.Fprintf(out, "ok    %s  %.1fs\n", e.Package, e.Elapsed)
			case e.Test == "" && e.Action == "fail":
				packageFailed = true // also when it does not build
				fmt.Fprintf(out, "%s%sFAIL  %s  %.1fs\n", unfinished(running, e.Package), output, e.Package, e.Elapsed)
			case e.Test == "":
				// no test files
			case e.Action == "pass":
				passed++
			case e.Action == "fail":
				failed++
				fmt.Fprintf(out, "%s %s\n%s", e.Package, e.Test, output)
			default:
				skip := e.Package + " " + e.Test + "\n" + output
				skips = append(skips, skip)
				if strings.Contains(output, missing) {
					forbidden = append(forbidden, skip)
				}
			}
		}
		if readErr == io.EOF {
			break
		} else if readErr != nil {
			return false, readErr
		}
	}
	if len(skips) > 0 {
		fmt.Fprintf(out, "\nSkipped:\n%s", strings.Join(skips, ""))
	}
	if len(forbidden) > 0 {
		fmt.Fprintf(out, "\nSkipped because a program is %s:\n%s", missing, strings.Join(forbidden, ""))
	}
	fmt.Fprintf(out, "\n%d passed, %d failed, %d skipped\n", passed, failed, len(skips))
	return passed > 0 && !packageFailed && len(forbidden) == 0, nil
}

// unfinished returns, and forgets, the output of the package's tests that have
// no result: of those that were running when the process died.
func unfinished(running map[test]string, pkg string) string {
	var outputs []string
	for t, output := range running {
		if t.pkg == pkg {
			outputs = append(outputs, t.pkg+" "+t.name+"\n"+output)
			delete(running, t)
		}
	}
	slices.Sort(outputs)
	return strings.Join(outputs, "")
}
