package jsonconf_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/backstay/backstay/internal/jsonconf"
)

// mode is an enum in the usual form.
type mode int

var modes = []string{"", "fast", "safe"}

func (m mode) MarshalText() ([]byte, error) {
	if int(m) >= len(modes) {
		return nil, fmt.Errorf("mode %d, want less than %d", int(m), len(modes))
	}
	return []byte(modes[m]), nil
}

func (m *mode) UnmarshalText(text []byte) error {
	for i, name := range modes {
		if name == string(text) {
			*m = mode(i)
			return nil
		}
	}
	return fmt.Errorf("unknown mode %q, want fast or safe", text)
}

// pair has a form of its own: [low, high].
type pair struct{ Low, High int }

func (p pair) MarshalJSON() ([]byte, error) { return json.Marshal([]int{p.Low, p.High}) }

func (p *pair) UnmarshalJSON(data []byte) error {
	var both [2]int
	if err := json.Unmarshal(data, &both); err != nil {
		return err
	}
	if both[0] > both[1] {
		return errors.New("want low <= high")
	}
	*p = pair{both[0], both[1]}
	return nil
}

type label string

type backoff struct {
	Base time.Duration `json:"base,omitempty"`
	Max  time.Duration `json:"max,omitempty"`
}

type Common struct {
	Name label `json:"name,omitempty"`
}

type route struct {
	Timeout *time.Duration `json:"timeout,omitempty"`
	Retry   *backoff       `json:"retry,omitempty"`
}

// config stands for the root's Config: it has the methods, what is inside has
// none.
type config struct {
	Common
	Retry    backoff                  `json:"retry,omitzero"`
	Routes   map[string]route         `json:"routes,omitempty"`
	Named    map[label]time.Duration  `json:"named,omitempty"`
	Methods  []string                 `json:"methods,omitempty"`
	Steps    []time.Duration          `json:"steps,omitempty"`
	Mode     mode                     `json:"mode,omitempty"`
	Range    pair                     `json:"range,omitzero"`
	Small    int8                     `json:"small,omitempty"`
	Count    uint16                   `json:"count,omitempty"`
	Big      int64                    `json:"big,omitempty"`
	Ratio    float64                  `json:"ratio,omitempty"`
	Disabled bool                     `json:"disabled,omitempty"`
	Started  time.Time                `json:"started,omitzero"`
	Matrix   []map[string][]time.Time `json:"matrix,omitempty"`
	Always   int                      `json:"always"`
	Now      func() time.Time         `json:"-"`
	Untagged string
	hidden   int
}

func (c *config) UnmarshalJSON(data []byte) error { return jsonconf.Unmarshal(data, c) }

func (c config) MarshalJSON() ([]byte, error) { return jsonconf.Marshal(c) }

func full() config {
	second := time.Second
	return config{
		Common:  Common{Name: "orders"},
		Retry:   backoff{Base: 50 * time.Millisecond, Max: -1},
		Routes:  map[string]route{"GET /v1/": {Timeout: &second, Retry: &backoff{}}, "b": {}},
		Named:   map[label]time.Duration{"x": time.Hour},
		Methods: []string{}, Steps: []time.Duration{1, time.Minute},
		Mode: 2, Range: pair{1, 2}, Small: -128, Count: 65535, Big: math.MaxInt64, Ratio: 0.25,
		Disabled: true, Started: time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC),
		Matrix: []map[string][]time.Time{nil, {"a": nil, "b": {time.Unix(0, 0).UTC()}}},
	}
}

const fullJSON = `{
	"name": "orders",
	"retry": {"base": "50ms", "max": "-1ns"},
	"routes": {"GET /v1/": {"timeout": "1s", "retry": {}}, "b": {}},
	"named": {"x": "1h0m0s"},
	"methods": [],
	"steps": ["1ns", "1m0s"],
	"mode": "safe",
	"range": [1, 2],
	"small": -128,
	"count": 65535,
	"big": 9223372036854775807,
	"ratio": 0.25,
	"disabled": true,
	"started": "2026-01-02T03:04:05Z",
	"matrix": [null, {"a": null, "b": ["1970-01-01T00:00:00Z"]}],
	"always": 0
}`

func TestConfigIsReadFromJSON(t *testing.T) {
	var direct, nested config
	require.NoError(t, jsonconf.Unmarshal([]byte(fullJSON), &direct))
	require.Equal(t, full(), direct)
	require.NoError(t, json.Unmarshal([]byte(fullJSON), &nested), "through encoding/json and the config's method")
	require.Equal(t, full(), nested)
}

func TestConfigIsWrittenInTheOrderOfItsFields(t *testing.T) {
	data, err := jsonconf.Marshal(full())
	require.NoError(t, err)
	require.Equal(t, strings.NewReplacer("\n", "", "\t", "", ": ", ":", ", ", ",").Replace(fullJSON), string(data))

	c := full()
	fromPointer, err := json.Marshal(&c)
	require.NoError(t, err)
	require.Equal(t, string(data), string(fromPointer), "through encoding/json and the config's method")
}

func TestZeroFieldsAreLeftOutOnlyWithOmitempty(t *testing.T) {
	data, err := jsonconf.Marshal(config{Untagged: "x", hidden: 1, Now: time.Now})
	require.NoError(t, err)
	require.JSONEq(t, `{"always":0}`, string(data))
}

func TestNilIsWrittenAsNull(t *testing.T) {
	for _, v := range []any{nil, (*config)(nil), []int(nil), map[string]int(nil)} {
		data, err := jsonconf.Marshal(v)
		require.NoError(t, err)
		require.Equal(t, "null", string(data))
	}
}

func TestUnmarshalErrorsNamePathValueAndConstraint(t *testing.T) {
	tests := []struct{ name, data, want string }{
		{"number for a duration", `{"retry":{"base":250}}`, `config: retry.base is 250, want a duration such as "250ms"`},
		{"zero for a duration", `{"retry":{"base":0}}`, `config: retry.base is 0, want a duration such as "250ms"`},
		{"duration without unit", `{"retry":{"max":"5"}}`, `config: retry.max is "5", want a duration such as "250ms"`},
		{"duration in a list", `{"steps":["1s",true]}`, `config: steps[1] is true, want a duration such as "250ms"`},
		{"duration in a map, by pointer", `{"routes":{"a:80":{"timeout":1}}}`, `config: routes["a:80"].timeout is 1, want a duration such as "250ms"`},
		{"unknown field", `{"retry":{"bas":"1s"}}`, `config: retry.bas is unknown, want one of base, max`},
		{"field for Go only", `{"now":1}`, `config: now is not for JSON, set Now in Go`},
		{"name in another case", `{"retry":{"Base":"1s"}}`, `config: retry.Base is unknown, want one of base, max`},
		{"repeated field", `{"retry":{"base":"1s","base":"2s"}}`, `config: retry.base is given twice, want it once`},
		{"repeated key", `{"named":{"a":"1s","a":"2s"}}`, `config: named.a is given twice, want it once`},
		{"enum", `{"mode":"warp"}`, `config: mode is "warp": unknown mode "warp", want fast or safe`},
		{"number for an enum", `{"mode":2}`, `config: mode is 2, want a string`},
		{"object for an enum", `{"mode":{"a" : 1}}`, `config: mode is {"a":1}, want a string`},
		{"own form", `{"range":[3,2]}`, `config: range is [3,2]: want low <= high`},
		{"string", `{"name":1}`, `config: name is 1, want a string`},
		{"bool", `{"disabled":"true"}`, `config: disabled is "true", want true or false`},
		{"int out of range", `{"small":128}`, `config: small is 128, want a whole number from -128 to 127`},
		{"64 bits", `{"big":1e30}`, `config: big is 1e30, want a whole number from -9223372036854775808 to 9223372036854775807`},
		{"negative uint", `{"count":-1}`, `config: count is -1, want a whole number from 0 to 65535`},
		{"fraction", `{"always":1.5}`, `config: always is 1.5, want a whole number from -9223372036854775808 to 9223372036854775807`},
		{"float", `{"ratio":1e999}`, `config: ratio is 1e999, want a number that fits a float64`},
		{"list", `{"methods":"GET"}`, `config: methods is "GET", want a list`},
		{"map", `{"routes":[ 1 ]}`, `config: routes is [1], want an object`},
		{"struct", `{"retry":true}`, `config: retry is true, want an object`},
		{"outermost", ` [1] `, `config: the value is [1], want an object`},
		{"long value", `{"retry":["` + strings.Repeat("ü", 60) + `"]}`, `config: retry is ["` + strings.Repeat("ü", 29) + `…, want an object`},
		{"percent in a key", `{"routes":{"%d":1}}`, `config: routes["%d"] is 1, want an object`},
		{"syntax", "{\n  \"retry\": {,}\n}", `config: line 2, column 13: invalid character ',' looking for beginning of object key string`},
		{"empty", ``, `config: line 1, column 0: unexpected end of JSON input`},
		{"second value", `{} {}`, `config: line 1, column 4: invalid character '{' after top-level value`},
		{
			"all at once", `{"retry":{"base":1,"x":2},"small":"a"}`,
			`config: retry.base is 1, want a duration such as "250ms"` + "\n" +
				`config: retry.x is unknown, want one of base, max` + "\n" +
				`config: small is "a", want a whole number from -128 to 127`,
		},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			var c config
			require.EqualError(t, jsonconf.Unmarshal([]byte(tt.data), &c), tt.want)
			require.Equal(t, config{}, c)
		})
	}
}

func TestFieldsWithoutATagAreUnknown(t *testing.T) {
	for _, name := range []string{"Untagged", "hidden", "Common", "-"} {
		var c config
		err := jsonconf.Unmarshal([]byte(`{"`+name+`":null}`), &c)
		require.ErrorContains(t, err, "config: "+name+" is unknown, want one of name, retry, routes, named")
	}
}

func TestTheCauseOfAnErrorIsWrapped(t *testing.T) {
	var v struct {
		Bad failing `json:"bad"`
	}
	require.ErrorIs(t, jsonconf.Unmarshal([]byte(`{"bad":"x"}`), &v), errBad)
	_, err := jsonconf.Marshal(v)
	require.ErrorIs(t, err, errBad)
	require.ErrorContains(t, err, "config: bad: ")
}

var errBad = errors.New("bad")

type failing struct{}

func (failing) MarshalText() ([]byte, error) { return nil, errBad }
func (*failing) UnmarshalText([]byte) error  { return errBad }
func (*failing) UnmarshalJSON([]byte) error  { return errBad }

func TestValueWithProblemsChangesNothing(t *testing.T) {
	c := full()
	err := jsonconf.Unmarshal([]byte(`{"name":"x","routes":{},"methods":["PUT"],"named":{"x":"1s"},"small":1000}`), &c)
	require.Error(t, err)
	require.Equal(t, full(), c)
}

func TestFieldsThatAreNotNamedKeepTheirValue(t *testing.T) {
	second := time.Second
	shared := &backoff{Base: 1, Max: 2}
	r := route{Timeout: &second, Retry: shared}
	require.NoError(t, jsonconf.Unmarshal([]byte(`{"retry":{"max":"5ns"}}`), &r))
	require.Equal(t, route{Timeout: &second, Retry: &backoff{Base: 1, Max: 5}}, r)
	require.Equal(t, &backoff{Base: 1, Max: 2}, shared, "what the target pointed to belongs to others")
}

func TestMapsAndSlicesAreReplaced(t *testing.T) {
	named, methods := map[label]time.Duration{"a": 1}, []string{"GET", "PUT"}
	c := config{Named: named, Methods: methods}
	require.NoError(t, jsonconf.Unmarshal([]byte(`{"named":{"b":"2ns"},"methods":["HEAD"]}`), &c))
	require.Equal(t, config{Named: map[label]time.Duration{"b": 2}, Methods: []string{"HEAD"}}, c)
	require.Equal(t, map[label]time.Duration{"a": 1}, named)
	require.Equal(t, []string{"GET", "PUT"}, methods)
}

func TestNullIsTheSameAsLeavingOut(t *testing.T) {
	var names []string
	for line := range strings.Lines(fullJSON) {
		if name, _, ok := strings.Cut(line, ":"); ok {
			names = append(names, name+": null")
		}
	}
	var c config
	require.NoError(t, jsonconf.Unmarshal([]byte("{"+strings.Join(names, ",")+"}"), &c))
	require.Equal(t, config{}, c)
	require.NoError(t, jsonconf.Unmarshal([]byte(" null\n"), &c))
	require.Equal(t, config{}, c)
}

func TestTargetMustBeAPointer(t *testing.T) {
	require.EqualError(t, jsonconf.Unmarshal([]byte(`{}`), nil), "config: the target is a <nil>, want a pointer that is not nil")
	require.EqualError(t, jsonconf.Unmarshal([]byte(`{}`), config{}), "config: the target is a jsonconf_test.config, want a pointer that is not nil")
	require.Error(t, jsonconf.Unmarshal([]byte(`{}`), (*config)(nil)))
}

func TestUnsupportedTypesAreErrors(t *testing.T) {
	tests := []struct {
		name   string
		target any
	}{
		{"interface", &struct {
			F any `json:"f"`
		}{F: 1}},
		{"func", &struct {
			F func() `json:"f"`
		}{F: func() {}}},
		{"array", &struct {
			F [2]int `json:"f"`
		}{}},
		{"key that is no string", &struct {
			F map[int]int `json:"f"`
		}{F: map[int]int{1: 1}}},
		{"complex", &struct {
			F complex128 `json:"f"`
		}{}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			require.ErrorContains(t, jsonconf.Unmarshal([]byte(`{"f":1}`), tt.target), "config: f is a ")
			_, err := jsonconf.Marshal(tt.target)
			require.ErrorContains(t, err, "config: f is a ")
			require.ErrorContains(t, err, "which has no form in JSON")
		})
	}
}

func TestMarshalErrorsNameThePath(t *testing.T) {
	_, err := jsonconf.Marshal(config{Ratio: math.NaN()})
	require.EqualError(t, err, "config: ratio: json: unsupported value: NaN")
	_, err = jsonconf.Marshal(map[string][]mode{"a b": {0, 9}})
	require.ErrorContains(t, err, `config: ["a b"][1]: `)
	require.ErrorContains(t, err, "mode 9, want less than 3")
}
