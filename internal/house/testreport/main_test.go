package main

import (
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

func TestReport(t *testing.T) {
	const pass = `{"Action":"start","Package":"m/a"}
{"Action":"run","Package":"m/a","Test":"TestA"}
{"Action":"output","Package":"m/a","Test":"TestA","Output":"=== RUN   TestA\n"}
{"Action":"output","Package":"m/a","Test":"TestA","Output":"    a_test.go:1: chatter\n"}
{"Action":"pass","Package":"m/a","Test":"TestA","Elapsed":0.1}
{"Action":"output","Package":"m/a","Output":"ok  \tm/a\t0.2s\n"}
{"Action":"pass","Package":"m/a","Elapsed":0.25}
{"Action":"output","Package":"m/none","Output":"?   \tm/none\t[no test files]\n"}
{"Action":"skip","Package":"m/none","Elapsed":0}
`
	skip := func(reason string) string {
		return `{"Action":"run","Package":"m/a","Test":"TestS/sub"}
{"Action":"output","Package":"m/a","Test":"TestS/sub","Output":"    s_test.go:1: ` + reason + `\n"}
{"Action":"output","Package":"m/a","Test":"TestS/sub","Output":"--- SKIP: TestS/sub (0.00s)\n"}
{"Action":"skip","Package":"m/a","Test":"TestS/sub","Elapsed":0}
`
	}
	tests := []struct {
		name, in string
		ok       bool
		want     string
	}{
		{"pass", pass, true, "ok    m/a  0.2s\n\n1 passed, 0 failed, 0 skipped\n"},
		{"nothing ran", "", false, "\n0 passed, 0 failed, 0 skipped\n"},
		{
			"harmless skip", pass + skip("not on this system"), true, "ok    m/a  0.2s\n\nSkipped:\nm/a TestS/sub\n" +
				"    s_test.go:1: not on this system\n--- SKIP: TestS/sub (0.00s)\n\n1 passed, 0 failed, 1 skipped\n",
		},
		{
			"skip for want of a program", pass + skip("redis-server is not installed"), false,
			"ok    m/a  0.2s\n\nSkipped:\nm/a TestS/sub\n" +
				"    s_test.go:1: redis-server is not installed\n--- SKIP: TestS/sub (0.00s)\n" +
				"\nSkipped because a program is not installed:\nm/a TestS/sub\n" +
				"    s_test.go:1: redis-server is not installed\n--- SKIP: TestS/sub (0.00s)\n\n1 passed, 0 failed, 1 skipped\n",
		},
		{
			"failure", pass + `{"Action":"run","Package":"m/b","Test":"TestB"}
{"Action":"output","Package":"m/b","Test":"TestB","Output":"    b_test.go:1: wrong\n"}
{"Action":"output","Package":"m/b","Test":"TestB","Output":"--- FAIL: TestB (0.00s)\n"}
{"Action":"fail","Package":"m/b","Test":"TestB","Elapsed":0}
{"Action":"output","Package":"m/b","Output":"FAIL\n"}
{"Action":"fail","Package":"m/b","Elapsed":1}
`, false, "ok    m/a  0.2s\nm/b TestB\n    b_test.go:1: wrong\n--- FAIL: TestB (0.00s)\nFAIL\nFAIL  m/b  1.0s\n" +
				"\n1 passed, 1 failed, 0 skipped\n",
		},
		{
			"panic", pass + `{"Action":"run","Package":"m/b","Test":"TestB"}
{"Action":"output","Package":"m/b","Test":"TestB","Output":"panic: test timed out\n"}
{"Action":"output","Package":"m/b","Output":"FAIL\tm/b\n"}
{"Action":"fail","Package":"m/b","Elapsed":1}
`, false, "ok    m/a  0.2s\nm/b TestB\npanic: test timed out\nFAIL\tm/b\nFAIL  m/b  1.0s\n" +
				"\n1 passed, 0 failed, 0 skipped\n",
		},
		{
			"build failure", pass + `{"ImportPath":"m/b","Action":"build-output","Output":"# m/b\n"}
{"ImportPath":"m/b","Action":"build-output","Output":"b.go:1:1: expected 'package'\n"}
{"ImportPath":"m/b","Action":"build-fail"}
{"Action":"fail","Package":"m/b","Elapsed":0,"FailedBuild":"m/b"}
`, false, "ok    m/a  0.2s\n# m/b\nb.go:1:1: expected 'package'\nFAIL  m/b  0.0s\n\n1 passed, 0 failed, 0 skipped\n",
		},
		{
			"words of others", "make: nothing to do\n" + pass + "the last line", true,
			"make: nothing to do\nok    m/a  0.2s\nthe last line\n1 passed, 0 failed, 0 skipped\n",
		},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			var out strings.Builder
			ok, err := report(strings.NewReader(tt.in), &out)
			require.NoError(t, err)
			require.Equal(t, tt.want, out.String())
			require.Equal(t, tt.ok, ok)
		})
	}
}
