// Bench compares Backstay with its peers: all in one process, the samples of a
// case's peers taken in turn, so that whatever disturbs the machine disturbs all
// alike. README.md says how to read what it prints.
//
//	go run ./bench [-run regexp] [-samples 30] [-time 30ms] [-format table|markdown|json] [-bars]
package main

import (
	"flag"
	"fmt"
	"io"
	"os"
	"regexp"
	"testing"
	"time"

	"github.com/zeromicro/go-zero/core/logx"
)

func main() {
	if err := run(os.Args[1:], os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

// run is the whole program.
func run(args []string, out io.Writer) error {
	flags := flag.NewFlagSet("bench", flag.ExitOnError)
	pattern := flags.String("run", "", "measure only the cases whose names match this `regexp`")
	samples := flags.Int("samples", 30, "how often each peer of a case is measured")
	duration := flags.Duration("time", 30*time.Millisecond, "how long a sample takes")
	format := flags.String("format", "table", "table, markdown or json")
	check := flags.Bool("bars", false, "check the bars too, and fail if one is missed")
	if err := flags.Parse(args); err != nil {
		return err
	}
	wanted, err := regexp.Compile(*pattern)
	if err != nil {
		return err
	}
	if *samples < 1 || *duration <= 0 {
		return fmt.Errorf("-samples is %d and -time is %s, want both above 0", *samples, *duration)
	}
	show, err := printerFor(*format, out)
	if err != nil {
		return err
	}
	testing.Init()
	logx.Disable() // go-zero logs statistics of its own accord

	all := matching(everything(), wanted)
	if len(all) == 0 {
		return fmt.Errorf("no case matches %q", *pattern)
	}
	res := report{Machine: machine(), Modules: versions(all), Samples: *samples, SampleTime: duration.String()}
	show.head(&res)
	m := newMeasurer(*samples, *duration)
	for _, c := range all {
		tables, err := m.measure(c)
		if err != nil {
			return err
		}
		for _, t := range tables {
			res.Tables = append(res.Tables, t)
			show.table(t)
		}
	}
	missed := 0
	if *check {
		if res.Bars, missed = checkBars(bars(), res.Tables); len(res.Bars) == 0 {
			return fmt.Errorf("there is no bar for the cases that match %q", *pattern)
		}
	}
	if err := show.end(&res); err != nil {
		return err
	}
	if missed > 0 {
		return fmt.Errorf("%d bars missed", missed)
	}
	return nil
}
