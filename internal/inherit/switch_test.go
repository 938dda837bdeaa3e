package inherit_test

import (
	"encoding/json"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/backstay/backstay/internal/inherit"
)

func TestSwitchIsTrueFalseOrLeftOut(t *testing.T) {
	type config struct {
		Field inherit.Switch `json:"field,omitempty"`
	}
	for s, text := range map[inherit.Switch]string{
		inherit.Inherit: `{}`, inherit.On: `{"field":true}`, inherit.Off: `{"field":false}`,
	} {
		got, err := json.Marshal(config{s})
		require.NoError(t, err)
		require.Equal(t, text, string(got))
		var c config
		require.NoError(t, json.Unmarshal(got, &c))
		require.Equal(t, s, c.Field)
		require.True(t, s.Valid())
	}
	for _, text := range []string{`1`, `"on"`, `{}`} {
		var s inherit.Switch
		require.EqualError(t, json.Unmarshal([]byte(text), &s), "want true or false")
		require.Zero(t, s)
	}
	text, err := json.Marshal(inherit.Inherit)
	require.NoError(t, err)
	require.Equal(t, "null", string(text))
	s := inherit.On
	require.NoError(t, json.Unmarshal([]byte("null"), &s))
	require.NoError(t, s.UnmarshalJSON([]byte("null")))
	require.Zero(t, s)
	require.False(t, inherit.Switch(3).Valid())
}

func TestSwitchNamesItself(t *testing.T) {
	for s, name := range map[inherit.Switch]string{inherit.Inherit: "", inherit.On: "on", inherit.Off: "off"} {
		require.Equal(t, name, s.String())
	}
}

func TestOffIsNotInheritedOver(t *testing.T) {
	require.Equal(t, inherit.Off, inherit.Of(inherit.Off, inherit.On))
	require.Equal(t, inherit.On, inherit.Of(inherit.On, inherit.Off))
	require.Equal(t, inherit.Off, inherit.Of(inherit.Inherit, inherit.Off))
}
