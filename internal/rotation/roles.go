package rotation

import (
	"cmp"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
)

// Roles that OSM's MeshRootCertificate may have.
const (
	RoleActive   = "active"
	RolePassive  = "passive"
	RoleInactive = "inactive"
)

// A Root is what a MeshRootCertificate of OSM's says.
type Root struct {
	Name string
	Spec RootSpec
}

// A RootSpec is the spec of one, config.openservicemesh.io/v1alpha2.
type RootSpec struct {
	TrustDomain   string `json:"trustDomain"`
	Role          string `json:"role"`
	SPIFFEEnabled bool   `json:"spiffeEnabled"` // every identity of this mesh is a SPIFFE ID
	Provider      struct {
		CertManager *struct {
			IssuerName  string `json:"issuerName"`
			IssuerKind  string `json:"issuerKind"`
			IssuerGroup string `json:"issuerGroup"`
		} `json:"certManager"`
		Vault *struct {
			Host     string `json:"host"`
			Port     int    `json:"port"`
			Role     string `json:"role"`
			Protocol string `json:"protocol"`
			Token    struct {
				SecretKeyRef struct {
					Name      string `json:"name"`
					Key       string `json:"key"`
					Namespace string `json:"namespace"`
				} `json:"secretKeyRef"`
			} `json:"token"`
		} `json:"vault"`
		Tresor *struct {
			CA struct {
				SecretRef struct {
					Name      string `json:"name"`
					Namespace string `json:"namespace"`
				} `json:"secretRef"`
			} `json:"ca"`
		} `json:"tresor"`
	} `json:"provider"`
}

// ParseRoot reads the spec of a MeshRootCertificate.
func ParseRoot(name string, spec any) (Root, error) {
	text, err := json.Marshal(spec)
	if err != nil {
		return Root{}, fmt.Errorf("read MeshRootCertificate %s: %w", name, err)
	}
	r := Root{Name: name}
	if err := json.Unmarshal(text, &r.Spec); err != nil {
		return Root{}, fmt.Errorf("read MeshRootCertificate %s: %w", name, err)
	}
	return r, nil
}

// A RootScope is what roots stand in.
type RootScope struct {
	// Namespace is the system namespace, where outriggerd reads Secrets.
	Namespace string
	// VaultCA is a Secret there with the CA of Vault's server in ca.crt, for which a
	// root has no word. Empty: public authorities.
	VaultCA string
}

// Authority returns the authority that a root stands for. Secrets must be in the
// system namespace.
func (r Root) Authority(scope RootScope) (Authority, error) {
	a := Authority{Name: label(r.Name), TrustDomain: cmp.Or(r.Spec.TrustDomain, "cluster.local")}
	inSystem := func(field, namespace string) error {
		if namespace != "" && namespace != scope.Namespace {
			return fmt.Errorf("%s is %q; only %s is allowed, where the mesh reads Secrets", field, namespace, scope.Namespace)
		}
		return nil
	}
	p := r.Spec.Provider
	if c := p.CertManager; c != nil {
		a.CertManager = &CertManager{Issuer: c.IssuerName, Kind: c.IssuerKind, Group: c.IssuerGroup}
	}
	if v := p.Vault; v != nil {
		ref := v.Token.SecretKeyRef
		if err := inSystem("provider.vault.token.secretKeyRef.namespace", ref.Namespace); err != nil {
			return a, err
		}
		a.Vault = &Vault{
			Address: fmt.Sprintf("%s://%s:%d", cmp.Or(v.Protocol, "http"), v.Host, v.Port), Role: v.Role,
			Token: &SecretKey{Secret: ref.Name, Key: ref.Key}, CASecret: scope.VaultCA,
		}
	}
	if t := p.Tresor; t != nil {
		if err := inSystem("provider.tresor.ca.secretRef.namespace", t.CA.SecretRef.Namespace); err != nil {
			return a, err
		}
		a.BuiltIn = &BuiltIn{Secret: t.CA.SecretRef.Name}
	}
	a = a.WithDefaults()
	return a, a.Validate()
}

// A RootVerdict says what became of a root.
type RootVerdict struct {
	Root      Root
	Authority Authority
	// Fault is why the root is not followed; empty for one that is.
	Fault string
}

// Roles makes a goal of the roles of roots: the active one signs and is trusted, the
// passive one is trusted, those that are inactive are not. Of two active ones that
// which signs already goes on. The goal is nil without an active root, which changes
// nothing.
func Roles(roots []Root, s State, scope RootScope) (*Goal, []RootVerdict) {
	roots = slices.Clone(roots)
	slices.SortFunc(roots, func(a, b Root) int { return cmp.Compare(a.Name, b.Name) })
	verdicts := make([]RootVerdict, len(roots))
	var active, passive []Authority
	for i, r := range roots {
		v := &verdicts[i]
		v.Root = r
		var err error
		if v.Authority, err = r.Authority(scope); err != nil {
			v.Fault = strings.ReplaceAll(err.Error(), "\n", "; ")
			continue
		}
		v.Authority = s.known(v.Authority, scope)
		switch r.Spec.Role {
		case RoleActive:
			active = append(active, v.Authority)
		case RolePassive:
			passive = append(passive, v.Authority)
		case RoleInactive:
		default:
			v.Fault = fmt.Sprintf("role is %q; %s, %s and %s are allowed", r.Spec.Role, RoleActive, RolePassive, RoleInactive)
		}
	}
	if len(active)+len(passive) > 2 || len(passive) > 1 || len(active) == 0 {
		fault := fmt.Sprintf("%d MeshRootCertificates are active and %d passive; one or two active, or one of each, are allowed", len(active), len(passive))
		for i := range verdicts {
			if verdicts[i].Fault == "" && verdicts[i].Root.Spec.Role != RoleInactive {
				verdicts[i].Fault = fault
			}
		}
		return nil, verdicts
	}
	signs := max(0, slices.IndexFunc(active, func(a Authority) bool { return a.Name == s.Signing }))
	goal := &Goal{Sign: active[signs], Also: slices.Concat(slices.Delete(slices.Clone(active), signs, signs+1), passive)}
	if err := goal.Validate(); err != nil {
		for i := range verdicts {
			if verdicts[i].Root.Spec.Role != RoleInactive {
				verdicts[i].Fault = cmp.Or(verdicts[i].Fault, err.Error())
			}
		}
		return nil, verdicts
	}
	return goal, verdicts
}

// known returns an authority as the mesh has it already, or with a free name. Where
// nothing says who vouches for Vault's server, it is whoever did before.
func (s State) known(a Authority, scope RootScope) Authority {
	for _, t := range s.Trusted {
		if t.Same(a) || scope.VaultCA == "" && withoutCA(t.Authority).Same(a) {
			return t.Authority
		}
	}
	a.Name = s.FreeName(a)
	return a
}

func withoutCA(a Authority) Authority {
	if a.Vault != nil {
		v := *a.Vault
		v.CASecret, v.CABundle = "", ""
		a.Vault = &v
	}
	return a
}

// JudgeRoot returns why a root may not be created, or not replace the one of before,
// beside the others of its namespace. The rules are OSM's: no step of them can take
// away who signs, and each can be taken by itself.
func JudgeRoot(namespace string, before *Root, after Root, others []Root) []string {
	count := func(role string, roots ...Root) int {
		n := 0
		for _, r := range roots {
			if r.Spec.Role == role {
				n++
			}
		}
		return n
	}
	role := after.Spec.Role
	var faults []string
	if before == nil {
		if after.Spec.TrustDomain == "" {
			faults = append(faults, "spec.trustDomain is empty; it is required")
		}
		if _, err := after.Authority(RootScope{Namespace: namespace}); err != nil {
			faults = append(faults, strings.ReplaceAll(err.Error(), "\n", "; "))
		}
		if (role == RoleActive || role == RolePassive) && count(role, others...) > 0 {
			return append(faults, fmt.Sprintf("cannot create MRC %s/%s with %s role. An MRC with this role already exists in the control plane namespace.", namespace, after.Name, role))
		}
	} else {
		if was, is := before.Spec, after.Spec; was.TrustDomain != is.TrustDomain || was.SPIFFEEnabled != is.SPIFFEEnabled || !sameJSON(was.Provider, is.Provider) {
			faults = append(faults, "spec.provider, spec.trustDomain and spec.spiffeEnabled cannot change; create another MeshRootCertificate, and change roles")
		}
		if before.Spec.Role == role {
			return faults
		}
		if from := before.Spec.Role; from == RoleActive && role == RoleInactive || from == RoleInactive && role == RoleActive {
			faults = append(faults, fmt.Sprintf("spec.role cannot change from %s to %s; make it %s first", from, role, RolePassive))
		}
	}
	all := append(slices.Clone(others), after)
	active, passive := count(RoleActive, all...), count(RolePassive, all...)
	switch {
	case active+passive > 2:
		faults = append(faults, fmt.Sprintf("%d MeshRootCertificates would be active and %d passive; two in all are allowed", active, passive))
	case active == 0 && (before != nil || passive > 0):
		faults = append(faults, fmt.Sprintf("no MeshRootCertificate would be active, and %d passive; at least one active is required", passive))
	}
	return faults
}

func sameJSON(a, b any) bool {
	left, errA := json.Marshal(a)
	right, errB := json.Marshal(b)
	return errA == nil && errB == nil && string(left) == string(right)
}
