package builder_test

import (
	"testing"

	"github.com/google/go-cmp/cmp"

	"kiln/builder"
)

func TestLoginNamesItsSecrets(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct {
		login   builder.Login
		basic   string
		secrets []string
	}{
		{builder.Login{}, "", []string{}},
		{builder.Login{Username: "u", Password: "p:w"}, "dTpwOnc=", []string{"p:w", "dTpwOnc="}},
		{builder.Login{Username: "<token>", IdentityToken: "id"}, "PHRva2VuPjo=", []string{"id"}},
		{builder.Login{RegistryToken: "reg"}, "", []string{"reg"}},
	} {
		if got := tc.login.Basic(); got != tc.basic {
			t.Errorf("Basic of %+v = %q, want %q", tc.login, got, tc.basic)
		}
		if diff := cmp.Diff(tc.secrets, tc.login.SecretValues()); diff != "" {
			t.Errorf("SecretValues of %+v (-want +got):\n%s", tc.login, diff)
		}
	}
}
