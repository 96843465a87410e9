//go:build integration

package identity

import (
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	authenticationv1 "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/outrigger-mesh/outrigger/e2e/cluster/local"
	"github.com/outrigger-mesh/outrigger/internal/rotation"
)

func TestVaultTokenOutlivesItsFirstTTL(t *testing.T) {
	v := newVaultTest(t, "vault-renewal", nil, map[string]any{"ttl": "4s", "renewable": true})
	var token corev1.Secret
	must(t, admin(t).Get(t.Context(), client.ObjectKey{Namespace: v.home.Namespace, Name: "vault-token"}, &token))
	issuer := v.open(t)
	v.run(t, issuer)
	eventually(t, "the token is renewed", func() error {
		answer, err := v.server.Call(t.Context(), http.MethodPost, "auth/token/lookup", map[string]any{"token": strings.TrimSpace(string(token.Data["token"]))})
		if err != nil {
			return err
		}
		var found struct {
			Data struct {
				Issued time.Time `json:"issue_time"`
				Ends   time.Time `json:"expire_time"`
			} `json:"data"`
		}
		if err := json.Unmarshal(answer, &found); err != nil {
			return err
		}
		if lives := found.Data.Ends.Sub(found.Data.Issued); lives < 10*time.Second {
			return fmt.Errorf("it lives %s", lives)
		}
		return nil
	})
	v.issued(t, issuer)
}

func TestVaultTokenIsReplacedInItsSecret(t *testing.T) {
	v := newVaultTest(t, "vault-replaced", nil, nil)
	issuer := v.open(t)
	v.issued(t, issuer)
	revoke := func(token string) {
		t.Helper()
		_, err := v.server.Call(t.Context(), http.MethodPost, "auth/token/revoke", map[string]any{"token": token})
		must(t, err)
	}
	var secret corev1.Secret
	must(t, admin(t).Get(t.Context(), client.ObjectKey{Namespace: v.home.Namespace, Name: "vault-token"}, &secret))
	revoke(strings.TrimSpace(string(secret.Data["token"])))
	v.refused(t, issuer, "403", "permission denied")
	short := v.giveToken(t, map[string]any{"ttl": "1s", "renewable": false})
	eventually(t, "the short token ends", func() error {
		if _, err := v.issue(t.Context(), t, issuer, time.Hour); err == nil {
			return fmt.Errorf("it is good")
		}
		return nil
	})
	v.refused(t, issuer, "403", "permission denied")
	if v.saidSo(short) {
		t.Error("the token is in an error")
	}
	v.giveToken(t, nil)
	v.issued(t, issuer) // at once
	v.secret(t, "vault-token", "token", "two words")
	if issuer.login.stale(t.Context()) {
		t.Error("what is no token was taken")
	}
	v.issued(t, issuer)
}

func TestVaultKubernetesLogin(t *testing.T) {
	v := newVaultTest(t, "vault-kubernetes", nil, nil)
	ctx := t.Context()
	set, err := kubernetes.NewForConfig(apiServer.Config)
	must(t, err)
	must(t, v.server.MakeKubernetesAuth(ctx, "clusters/one", local.KubernetesAuth{
		Host: apiServer.Config.Host, CA: string(apiServer.Config.CAData), Reviewer: v.serviceAccountToken(t, set, "reviewer", ""),
		Namespace: v.home.Namespace, ServiceAccount: ServiceAccount, Role: "outriggerd", Policy: "sign-" + vaultRole, TTL: "6s", // long enough for one call of a busy machine
	}))
	must(t, admin(t).Create(ctx, &rbacv1.ClusterRoleBinding{
		ObjectMeta: metav1.ObjectMeta{Name: "vault-reviews"},
		RoleRef:    rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: "ClusterRole", Name: "system:auth-delegator"},
		Subjects:   []rbacv1.Subject{{Kind: "ServiceAccount", Namespace: v.home.Namespace, Name: "reviewer"}},
	}))
	file := filepath.Join(t.TempDir(), "token")
	write := func(token string) { must(t, os.WriteFile(file, []byte(token), 0o600)) }
	v.config.TokenFile, v.config.Vault.Token = file, nil
	v.config.Vault.Kubernetes = &rotation.VaultKubernetes{Role: "outriggerd", Mount: "clusters/one"}
	issuer := v.open(t)
	v.refused(t, issuer, "no token for Vault in", "certificates.vault.kubernetes")

	write(v.serviceAccountToken(t, set, ServiceAccount, "vault"))
	issuer = v.open(t)
	v.issued(t, issuer)
	first := issuer.login.held("")
	v.keepSecret(first)
	eventually(t, "a login anew without Run, when the token has ended", func() error {
		v.issued(t, issuer)
		if now := issuer.login.held(""); now == first || now == "" {
			return fmt.Errorf("the first token is in use")
		}
		return nil
	})
	v.run(t, issuer)
	second := issuer.login.held("")
	eventually(t, "a login anew before the token ends", func() error {
		if now := issuer.login.held(""); now == second || now == "" {
			return fmt.Errorf("the second token is in use")
		}
		return nil
	})
	v.issued(t, issuer)

	t.Run("a token for another audience", func(t *testing.T) {
		write(v.serviceAccountToken(t, set, ServiceAccount, "elsewhere"))
		v.refused(t, v.open(t), "log in to Vault with role outriggerd at clusters/one", "403")
	})
	t.Run("another service account", func(t *testing.T) {
		write(v.serviceAccountToken(t, set, "stranger", "vault"))
		v.refused(t, v.open(t), "service account name not authorized")
	})
	t.Run("a role that is not there", func(t *testing.T) {
		write(v.serviceAccountToken(t, set, ServiceAccount, "vault"))
		v.config.Vault.Kubernetes = &rotation.VaultKubernetes{Role: "other", Mount: "clusters/one"}
		v.refused(t, v.open(t), "invalid role name")
	})
}

// serviceAccountToken makes the service account where there is none, and a token of
// it. An empty audience is the API server's.
func (v *vaultTest) serviceAccountToken(t *testing.T, set *kubernetes.Clientset, name, audience string) string {
	t.Helper()
	account := &corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Namespace: v.home.Namespace, Name: name}}
	must(t, client.IgnoreAlreadyExists(admin(t).Create(t.Context(), account)))
	request := &authenticationv1.TokenRequest{}
	if audience != "" {
		request.Spec.Audiences = []string{audience}
	}
	made, err := set.CoreV1().ServiceAccounts(v.home.Namespace).CreateToken(t.Context(), name, request, metav1.CreateOptions{})
	must(t, err)
	v.keepSecret(made.Status.Token)
	return made.Status.Token
}
