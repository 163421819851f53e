"""What wandb writes when it is offline."""


def leveldb_records(content):
    """Records of LevelDB's log format: blocks of 32 KiB, pieces of (crc, length, kind)."""
    position, whole = 0, b""
    while position + 7 <= len(content):
        left = 32768 - (position + 7) % 32768
        if left < 7:
            position += left
            continue
        length = int.from_bytes(content[position + 4 : position + 6], "little")
        kind = content[position + 6]
        whole += content[position + 7 : position + 7 + length]
        position += 7 + length
        if kind in (1, 4):
            yield whole
            whole = b""
