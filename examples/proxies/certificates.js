// RFC 9440 for nginx, which has certificates in PEM only, and of its client's chain only the leaf: the CA's certificates
// that lead to a root are found by their names, and the root is left out.
import fs from 'fs';

const MAX_CHAIN = 7; // members that an agent reads

function certificates(pem) {
    const found = pem.match(/-----BEGIN CERTIFICATE-----[^-]+-----END CERTIFICATE-----/g) || [];
    return found.map((one) => one.replace(/-----[^-]+-----|\s/g, ''));
}

// Where the element of DER that begins at `at` has its content, and where it ends.
function element(der, at) {
    let content = at + 2, length = der[at + 1];
    if (length > 127) {
        content += length - 128;
        length = 0;
        for (let i = at + 2; i < content; i++) {
            length = length * 256 + der[i];
        }
    }
    return { content: content, end: content + length };
}

// The names in a certificate (RFC 5280 section 4.1), in hex.
function names(certificate) {
    const der = Buffer.from(certificate, 'base64');
    const after = (at) => element(der, at).end;
    let at = element(der, element(der, 0).content).content;
    if (der[at] === 0xa0) {
        at = after(at); // version
    }
    const issuer = after(after(at)); // serial number, signature algorithm
    const subject = after(after(issuer)); // validity
    return { issuer: der.toString('hex', issuer, after(issuer)), subject: der.toString('hex', subject, after(subject)) };
}

function sequence(found) {
    return found.map((one) => ':' + one + ':').join(', ');
}

function leaf(r) {
    return sequence(certificates(r.variables.ssl_client_raw_cert || ''));
}

function chain(r) {
    const own = certificates(r.variables.ssl_client_raw_cert || '');
    if (!own.length) {
        return '';
    }
    const all = certificates(fs.readFileSync(r.variables.fleet_ca).toString());
    let found = [], issuer = names(own[0]).issuer, above;
    do {
        above = all.filter((one) => names(one).subject === issuer && names(one).issuer !== issuer);
        found = found.concat(above);
        issuer = above.length ? names(above[0]).issuer : '';
    } while (above.length && found.length < MAX_CHAIN);
    return sequence(found.slice(0, MAX_CHAIN));
}

export default { leaf, chain };
