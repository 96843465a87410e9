package main

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"testing"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	"k8s.io/apimachinery/pkg/util/yaml"

	"github.com/outrigger-mesh/outrigger/internal/golden"
)

// documents returns the objects of a kind that the chart makes.
func documents[T any](t *testing.T, kind string, values map[string]any) []T {
	t.Helper()
	text, err := render("outrigger-system", values)
	if err != nil {
		t.Fatal(err)
	}
	var found []T
	decoder := yaml.NewYAMLOrJSONDecoder(strings.NewReader(text), 4096)
	for {
		var raw json.RawMessage
		if decoder.Decode(&raw) != nil {
			return found
		}
		var head struct{ Kind string }
		var object T
		if json.Unmarshal(raw, &head) == nil && head.Kind == kind {
			if err := json.Unmarshal(raw, &object); err != nil {
				t.Fatal(err)
			}
			found = append(found, object)
		}
	}
}

// rights writes rules as lines: WHERE GROUP/RESOURCE[NAMES] VERBS.
func rights(where string, rules []rbacv1.PolicyRule) []string {
	var lines []string
	for _, r := range rules {
		for _, group := range r.APIGroups {
			for _, resource := range r.Resources {
				line := strings.TrimPrefix(group+"/"+resource, "/")
				if len(r.ResourceNames) > 0 {
					line += fmt.Sprint(r.ResourceNames)
				}
				lines = append(lines, where+" "+line+" "+strings.Join(r.Verbs, ","))
			}
		}
	}
	return lines
}

// TestRightsOfTheControlPlane holds everything that the chart lets outriggerd do
// to a list in testdata. A right more is a line more there: read it with
// docs/security.md in mind.
func TestRightsOfTheControlPlane(t *testing.T) {
	issuers := map[string]any{"certificates": map[string]any{
		"secrets":     []any{"next"},
		"builtIn":     map[string]any{"secret": "mine"},
		"certManager": map[string]any{"issuer": "mesh"},
		"vault":       map[string]any{"caSecret": "vault-ca", "token": map[string]any{"secret": "vault-token", "key": "token"}},
	}}
	for file, values := range map[string]map[string]any{"rights": nil, "rights-with-issuers": issuers} {
		var got []string
		for _, role := range documents[rbacv1.ClusterRole](t, "ClusterRole", values) {
			got = append(got, rights("cluster", role.Rules)...)
		}
		for _, role := range documents[rbacv1.Role](t, "Role", values) {
			got = append(got, rights(role.Namespace, role.Rules)...)
		}
		slices.Sort(got)
		golden.Compare(t, "testdata/"+file+".golden.txt", []byte(strings.Join(got, "\n")+"\n"))
		for _, line := range got {
			if strings.Contains(line, "*") || strings.HasPrefix(line, "cluster secrets") || strings.Contains(line, "escalate") || strings.Contains(line, "impersonate") {
				t.Errorf("no control plane needs %s", line)
			}
		}
	}
}

// TestContainersOfTheControlPlane holds that nothing that the chart runs can do
// more on a node than a container must.
func TestContainersOfTheControlPlane(t *testing.T) {
	deployments := documents[appsv1.Deployment](t, "Deployment", nil)
	if len(deployments) == 0 {
		t.Fatal("the chart has no Deployment")
	}
	for _, d := range deployments {
		spec := d.Spec.Template.Spec
		if p := spec.SecurityContext; p == nil || p.RunAsNonRoot == nil || !*p.RunAsNonRoot || p.SeccompProfile == nil || p.SeccompProfile.Type != corev1.SeccompProfileTypeRuntimeDefault {
			t.Errorf("Deployment %s: its pods' security context is %+v", d.Name, p)
		}
		if spec.HostNetwork || spec.HostPID || spec.HostIPC {
			t.Errorf("Deployment %s shares something with its node", d.Name)
		}
		for _, v := range spec.Volumes {
			if v.HostPath != nil {
				t.Errorf("Deployment %s mounts %s of its node", d.Name, v.HostPath.Path)
			}
		}
		for _, c := range slices.Concat(spec.InitContainers, spec.Containers) {
			s := c.SecurityContext
			if s == nil || s.AllowPrivilegeEscalation == nil || *s.AllowPrivilegeEscalation || s.ReadOnlyRootFilesystem == nil || !*s.ReadOnlyRootFilesystem ||
				s.Capabilities == nil || !slices.Equal(s.Capabilities.Drop, []corev1.Capability{"ALL"}) || len(s.Capabilities.Add) > 0 || s.Privileged != nil && *s.Privileged {
				t.Errorf("Deployment %s, container %s: its security context is %+v", d.Name, c.Name, s)
			}
			if c.Resources.Limits.Memory().IsZero() {
				t.Errorf("Deployment %s, container %s: its memory has no limit", d.Name, c.Name)
			}
		}
	}
}
